package config

import (
	"errors"
	"slices"
	"time"
)

// logging, security and listening are the settings every server has.
func logging() []setting {
	return []setting{
		{
			key: "log.level", kind: kindChoice, value: "info", help: "least level that is logged",
			choices: []string{"debug", "info", "warn", "error"},
		},
		{
			key: "log.format", kind: kindChoice, value: "text", help: "form of the log",
			choices: []string{"text", "json"},
		},
	}
}

func security() []setting {
	return []setting{
		{key: "tls.ca", help: "PEM file of the authority all members trust"},
		{key: "tls.cert", help: "PEM file of this process's certificate"},
		{key: "tls.key", help: "PEM file of its private key"},
	}
}

func serving(listen, raft, http string) []setting {
	return []setting{
		{key: "listen", kind: kindAddress, value: listen, help: "gRPC listen address"},
		{
			key: "advertise", kind: kindAddress,
			help: "gRPC address that others dial (default: the listen address)",
		},
		{
			key: "raft.listen", kind: kindAddress, value: raft, flag: "raft-listen",
			help: "Raft listen address",
		},
		{
			key: "raft.advertise", kind: kindAddress,
			help: "Raft address that others dial (default: the listen address)",
		},
		{
			key: "http.listen", kind: kindAddress, value: http,
			help: "address of /metrics, /healthz, /readyz and (on loopback) /debug/pprof",
		},
		{
			key: "insecure", kind: kindBool,
			help: "listen beyond loopback without TLS: whoever reaches a port can read, write and crash",
		},
	}
}

func placement() []setting {
	return []setting{
		{
			key: "replicas", kind: kindInt, value: "3", min: 1, max: 7,
			help: "voters of a range once there are as many stores; odd",
		},
		{
			key: "split_size", kind: kindSize, value: "96MB", min: 64 << 10, max: 8 << 30,
			help: "size at which a range is split",
		},
		{
			key: "store_down_after", kind: kindDuration, value: "5m", min: int64(time.Second),
			help: "silence after which a store's replicas are replaced",
		},
		{
			key: "retention", kind: kindDuration, value: "10m", min: int64(time.Second),
			help: "how long old versions are kept for snapshot reads",
		},
		{
			key: "location_labels", kind: kindList,
			help: "store labels that name failure domains, the widest first: zone,rack,host",
		},
		{
			key: "store_moves", kind: kindInt, value: "4", min: 1, max: 64,
			help: "replicas a store receives, and sends, at a time",
		},
		{
			key: "leader_transfers", kind: kindInt, value: "8", min: 1, max: 64,
			help: "leaderships a store gives away, and takes, at a time",
		},
		{
			key: "image_rate", kind: kindSize, max: most,
			help: "bytes per second a store sends as range images (default: no bound)",
		},
		{
			key: "high_water", kind: kindInt, value: "90", min: 10, max: 100,
			help: "how full a disk may be, in percent, to receive replicas",
		},
		{
			key: "balance_tolerance", kind: kindInt, value: "5", min: 1, max: 100,
			help: "how far stores may lie apart, in percent of the mean, before balancing begins",
		},
		{
			key: "split_load", kind: kindInt, value: "25000", max: 1 << 40,
			help: "operations per second from which a range is split; 0 is never",
		},
	}
}

// PD are the settings of `ridge pd`.
func PD() Schema {
	return Schema{"pd", slices.Concat([]setting{
		{key: "dir", value: "data/pd", help: "directory of this PD node"},
		{
			key: "member_id", kind: kindInt, min: 1,
			help: "id of this PD node in members (default: 1; later, what its directory says)",
		},
		{
			key: "members", kind: kindList,
			help: "the PD nodes a cluster begins with, as ID=GRPC_ADDRESS/RAFT_ADDRESS, with commas " +
				"(default: this one alone)",
		},
		{
			key: "join", kind: kindList,
			help: "gRPC addresses of PD nodes of the cluster to join; later starts need it no more",
		},
		{
			key: "store_heartbeat", kind: kindDuration, value: "1s", min: int64(10 * time.Millisecond),
			max: int64(time.Minute), help: "how often stores report",
		},
		memory("256MB"),
	}, serving("127.0.0.1:7400", "127.0.0.1:7401", "127.0.0.1:7402"), placement(), security(),
		logging())}
}

// Store are the settings of `ridge store`.
func Store() Schema {
	return Schema{"store", slices.Concat([]setting{
		{
			key: "pd", kind: kindList, value: "127.0.0.1:7400",
			help: "gRPC addresses of PD nodes, with commas",
		},
		{key: "labels", kind: kindLabels, flag: "labels", help: "where it stands, as zone=a,rack=7"},
		{
			key: "raft.tick", kind: kindDuration, min: int64(10 * time.Millisecond),
			help: "Raft's clock (default 500ms)",
		},
		{
			key: "drain_timeout", kind: kindDuration, min: int64(time.Millisecond),
			help: "bound on handing leaders away at the end (default 5s)",
		},
		memory("1GB"),
	}, serving("127.0.0.1:7500", "127.0.0.1:7501", "127.0.0.1:7502"), storage("data/store"),
		security(), logging())}
}

// Dev are the settings of `ridge dev`.
func Dev() Schema {
	return Schema{"dev", slices.Concat([]setting{
		{key: "stores", kind: kindInt, value: "3", min: 1, max: 16, help: "number of stores"},
		{key: "dir", value: "data/dev", help: "directory of the whole cluster"},
		{
			key: "pd_listen", kind: kindAddress,
			help: "gRPC listen address of PD; the other ports follow from it at the first start " +
				"(default 127.0.0.1:7400)",
		},
		{
			key: "http.listen", kind: kindAddress,
			help: "address of /metrics, /healthz, /readyz, /debug/pprof (default: PD's port + 2)",
		},
		{
			key: "memory", kind: kindSize, value: "256MB", min: 256 << 20,
			help: "memory budget of each store",
		},
		{
			key: "insecure", kind: kindBool,
			help: "listen beyond loopback without TLS: whoever reaches a port can read, write and crash",
		},
	}, placement(), storage(""), logging())}
}

// Client are the settings of the commands that speak to a cluster.
func Client() Schema {
	return Schema{"client", slices.Concat([]setting{
		{
			key: "pd", kind: kindList, value: "127.0.0.1:7400",
			help: "gRPC addresses of PD nodes, with commas (env RIDGE_PD)",
		},
		{
			key: "timeout", kind: kindDuration, value: "10s", min: int64(time.Millisecond),
			help: "bound on one operation",
		},
	}, security())}
}

func memory(value string) setting {
	return setting{
		key: "memory", kind: kindSize, value: value, min: 64 << 20,
		help: "memory budget of the process; becomes Go's memory limit unless GOMEMLIMIT is set",
	}
}

// storage are the settings of the engine. dataPath "" leaves data_path out.
func storage(dataPath string) []setting {
	all := []setting{
		{
			key: "storage.data_path", value: dataPath, flag: "dir",
			help: "directory of the store: data and Raft log together",
		},
		{
			key: "storage.capacity", kind: kindSize, min: 64 << 20, max: most, flag: "capacity",
			help: "how much of the disk the store may use (default: all)",
		},
		{
			key: "storage.sync_writes", kind: kindBool,
			help: "sync every commit (the Raft log is synced in any case)",
		},
		{
			key: "storage.raft_log", kind: kindChoice, choices: []string{"ridge-log", "sharded-pebble"},
			help: "format of the Raft log, frozen by the first start (default: as it is, new: ridge-log)",
		},
	}
	all = slices.Concat(all, tree(), unsafe())
	if dataPath == "" {
		return all[1:]
	}
	return all
}

// most is more than any machine has.
const most = 1 << 50

// tree are the settings that shape the engine's tree.
func tree() []setting {
	return []setting{
		{
			key: "storage.memtable_size", kind: kindSize, max: 1 << 30, help: "size of a memtable",
			check: func(v any) error {
				if v.(int64) < 32<<20 {
					return errors.New("below 32MB is refused: 15 % of a memtable must hold the largest " +
						"log entry (4 MiB)")
				}
				return nil
			},
		},
		{key: "storage.block_cache_size", kind: kindSize, max: most, help: "cache of data blocks"},
		{
			key: "storage.row_cache_size", kind: kindSize, max: most, off: true,
			help: "cache of rows for point reads, or off",
			check: func(v any) error {
				if n := v.(int64); n >= 0 && n < 1<<20 {
					return errors.New("below 1MB is refused: too small to help, write off")
				}
				return nil
			},
		},
		{key: "storage.index_cache_size", kind: kindSize, max: most, help: "cache of table indexes"},
		{
			key: "storage.num_memtables", kind: kindInt, min: 1, max: 64,
			help: "memtables that may wait before writes stall",
		},
		{
			key: "storage.num_level_zero_tables", kind: kindInt, min: 1, max: 64,
			help: "level-0 tables at which compaction starts",
		},
		{
			key: "storage.level_size_multiplier", kind: kindInt, min: 2, max: 100,
			help: "how much larger each level is than the one above",
		},
		{
			key: "storage.compression", kind: kindChoice, choices: []string{"none", "snappy", "zstd"},
			help: "compression of tables",
		},
		{
			key: "storage.num_compactors", kind: kindInt, max: 64, help: "compaction workers",
			check: func(v any) error {
				if v.(int64) < 2 {
					return errors.New("below 2 is refused: one worker is kept for level 0 and the others " +
						"would never run")
				}
				return nil
			},
		},
	}
}

// unsafe are settings whose other values would lose data or memory; they exist
// so that a configuration that has them is refused with the reason.
func unsafe() []setting {
	return []setting{
		{
			key: "storage.value_threshold", kind: kindSize,
			help:  "size from which values leave the tree",
			check: checkValueThreshold,
		},
		{
			key: "storage.detect_conflicts", kind: kindBool, help: "must be false",
			check: func(v any) error {
				if v.(bool) {
					return errors.New("true is refused: in managed mode the engine never forgets what it " +
						"tracks for it, so memory grows without end; conflicts are found above the engine")
				}
				return nil
			},
		},
	}
}

// checkValueThreshold keeps values out of the engine's value log, whose
// garbage collection may bring an older version of a key back.
func checkValueThreshold(v any) error {
	const limit = 1 << 20
	if n := v.(int64); n != limit {
		return errors.New("anything but 1MB is refused in this release: below the largest value " +
			"(1 MiB - 64 B) values would go to the value log, whose garbage collection can bring an " +
			"older version of a key back; above 1MB the engine does not start")
	}
	return nil
}
