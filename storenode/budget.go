package storenode

import (
	"fmt"

	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// Budget is how MemoryBytes is divided: what each part may hold. Not all that
// many large values hold is counted (ARCHITECTURE.md, Memory). Pages of the
// engine's files are no part of it: the kernel lends them, and takes them back
// when it needs them.
type Budget struct {
	// Memtables are the one that is written, those that wait, and the one that
	// is written out.
	Memtables int64
	// Tables are the tables in the making: a memtable's, and one of each
	// compactor.
	Tables int64
	// BlockCache and RowCache are the engine's caches.
	BlockCache, RowCache int64
	// Requests are what callers have sent and have not been answered: the
	// messages, and once more the entries that are made of them. Entries stay in
	// Raft's memory until they are applied, and then they are answered.
	Requests int64
	// Intake is what a follower has been sent and has not applied, SendQueue what
	// waits for a connection to another store.
	Intake, SendQueue int64
	// Rest is for the process: replicas, stacks, what is garbage already.
	Rest int64
}

// All is the sum.
func (b Budget) All() int64 {
	return b.Memtables + b.Tables + b.BlockCache + b.RowCache + b.Requests + b.Intake +
		b.SendQueue + b.Rest
}

// String lists the parts.
func (b Budget) String() string {
	mib := func(v int64) int64 { return (v + 1<<20 - 1) >> 20 }
	return fmt.Sprintf("memtables %d, tables in the making %d, block cache %d, row cache %d, "+
		"requests %d, intake %d, send queue %d, the rest %d: together %d MiB",
		mib(b.Memtables), mib(b.Tables), mib(b.BlockCache), mib(b.RowCache), mib(b.Requests),
		mib(b.Intake), mib(b.SendQueue), mib(b.Rest), mib(b.All()))
}

// inFlightBytes bounds the requests of all callers. An entry made of them takes as
// much again.
func (b Budget) inFlightBytes() int64 { return b.Requests / 2 }

// Budget is how the memory of a store with these options is divided. Fields that
// are set count as they are; the block cache gets what all others leave.
func (o Options) Budget() Budget {
	o = o.divided()
	e, m := o.Engine, o.MemoryBytes
	b := Budget{
		Memtables:  int64(e.NumMemtables+2) * engine.MemTableMemory(e.MemTableSizeBytes),
		Tables:     e.MemTableSizeBytes + int64(e.NumCompactors)*compactedTableBytes,
		BlockCache: e.BlockCacheSizeBytes, RowCache: max(e.RowCacheSizeBytes, 0),
		Requests: m / 8, Intake: m / 16, SendQueue: m / 16, Rest: m / 16,
	}
	if m < smallMemoryBytes {
		b.SendQueue, b.Rest = m/32, m/32
	}
	if b.BlockCache == 0 {
		b.BlockCache = max(m-b.All(), minBlockCacheBytes)
	}
	return b
}

const (
	// smallMemoryBytes is where memtables, which have a least size, leave little
	// for the rest.
	smallMemoryBytes = 512 << 20
	// maxMemtables is how many memtables may wait, however much memory there is.
	maxMemtables = 5
	// compactedTableBytes is a table that a compactor makes.
	compactedTableBytes = 8 << 20
	minBlockCacheBytes  = 8 << 20
)

// divided fills in the fields of the engine that follow from the memory, but not
// the block cache.
func (o Options) divided() Options {
	setDefault(&o.MemoryBytes, defaultMemoryBytes)
	e, m := &o.Engine, o.MemoryBytes
	if m < defaultMemoryBytes {
		setDefault(&e.MemTableSizeBytes, 32<<20)
		setDefault(&e.NumCompactors, 2)
	}
	if m < smallMemoryBytes {
		setDefault(&e.RowCacheSizeBytes, m/32)
	}
	setDefault(&e.MemTableSizeBytes, 64<<20)
	setDefault(&e.NumCompactors, 3)
	setDefault(&e.RowCacheSizeBytes, m/8)
	// A third of the memory is for memtables: the one that is written, the one
	// that is written out, and those that wait.
	third := m / 3 / engine.MemTableMemory(e.MemTableSizeBytes)
	setDefault(&e.NumMemtables, int(min(max(third-2, 1), maxMemtables)))
	return o
}
