package engine

import (
	"fmt"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the room. They exist without a Registerer, too.
type metrics struct {
	registerer prometheus.Registerer
	registered []prometheus.Collector

	commitSeconds, flushSeconds prometheus.Histogram
	commitEntries, commitSets   prometheus.Histogram
	commitBytes                 prometheus.Counter
	collected, verified         prometheus.Counter
	discard, corrupt            prometheus.Gauge
}

func newMetrics(e *Engine) (*metrics, error) {
	latency := prometheus.ExponentialBuckets(50e-6, 2, 18) // 50 µs to 6.5 s
	m := &metrics{
		registerer: e.opt.Registerer,
		commitSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ridge_engine_commit_seconds", Help: "Duration of a commit.", Buckets: latency,
		}),
		flushSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ridge_engine_flush_seconds", Help: "Duration of a flush.", Buckets: latency,
		}),
		commitEntries: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ridge_engine_commit_entries", Help: "Entries in a commit.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 9),
		}),
		commitSets: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ridge_engine_commit_sets", Help: "Write sets gathered in a commit.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 12),
		}),
		commitBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ridge_engine_commit_bytes_total", Help: "Bytes of keys and values committed.",
		}),
		collected: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ridge_engine_collected_rows_total", Help: "Rows of garbage slices deleted.",
		}),
		verified: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ridge_engine_verified_bytes_total", Help: "Bytes of tables checked.",
		}),
		discard: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ridge_engine_discard_seq", Help: "Versions may be dropped up to this commit.",
		}),
		corrupt: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ridge_engine_corrupt", Help: "1 when a table did not match its checksums.",
		}),
	}
	if m.registerer == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{
		m.commitSeconds, m.flushSeconds, m.commitEntries, m.commitSets, m.commitBytes,
		m.collected, m.verified, m.discard, m.corrupt, newSampled(e),
	} {
		if err := m.registerer.Register(c); err != nil {
			m.unregister()
			return nil, fmt.Errorf("engine: register metrics: %w", err)
		}
		m.registered = append(m.registered, c)
	}
	return m, nil
}

func (m *metrics) committed(c *commit) {
	m.commitSeconds.Observe(time.Since(c.started).Seconds())
	m.commitEntries.Observe(float64(c.ops))
	m.commitSets.Observe(float64(len(c.finished)))
	m.commitBytes.Add(float64(c.sizeBytes))
}

func (m *metrics) unregister() {
	for _, c := range m.registered {
		m.registerer.Unregister(c)
	}
	m.registered = nil
}

// sampled are the metrics that are read when they are asked for.
type sampled struct {
	e                                      *Engine
	visible, flushed, floor, stalled       *prometheus.Desc
	garbage, pins, diskUsed, diskAvailable *prometheus.Desc
	levelTables, levelBytes, levelStale    *prometheus.Desc
	cacheHits, cacheMisses, cacheBytes     *prometheus.Desc
	rowHits, rowMisses, rowEvictions       *prometheus.Desc
	rowEntries, rowBytes                   *prometheus.Desc
	compactedTables, compactionPaused      *prometheus.Desc
}

func newSampled(e *Engine) *sampled {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("ridge_engine_"+name, help, labels, nil)
	}
	return &sampled{
		e:               e,
		visible:         desc("visible_seq", "The newest commit."),
		flushed:         desc("flushed_seq", "The newest commit that is durable."),
		floor:           desc("floor_timestamp_ms", "Where history begins, in Unix ms."),
		stalled:         desc("stalled", "1 when writers should hold back."),
		garbage:         desc("garbage_slices", "Slices on the garbage list."),
		pins:            desc("pinned_seqs", "Commits that readers hold."),
		diskUsed:        desc("disk_used_bytes", "Bytes used of the capacity."),
		diskAvailable:   desc("disk_available_bytes", "Bytes left of the capacity."),
		levelTables:     desc("level_tables", "Tables in a level.", "level"),
		levelBytes:      desc("level_bytes", "Size of a level.", "level"),
		levelStale:      desc("level_stale_bytes", "Bytes a compaction could drop.", "level"),
		cacheHits:       desc("block_cache_hits_total", "Blocks found in the cache."),
		cacheMisses:     desc("block_cache_misses_total", "Blocks not found in the cache."),
		cacheBytes:      desc("block_cache_bytes", "Bytes in the block cache."),
		rowHits:         desc("row_cache_hits_total", "Point reads answered by the row cache."),
		rowMisses:       desc("row_cache_misses_total", "Point reads that the row cache sent on."),
		rowEvictions:    desc("row_cache_evictions_total", "Rows that made room for others."),
		rowEntries:      desc("row_cache_entries", "Rows in the row cache."),
		rowBytes:        desc("row_cache_bytes", "Memory of the row cache."),
		compactedTables: desc("compaction_tables_total", "Tables that compactions have filled."),
		compactionPaused: desc("compaction_paused_seconds_total",
			"Time that parts of compactions have waited to leave the processors to others."),
	}
}

// Describe implements prometheus.Collector.
func (s *sampled) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		s.visible, s.flushed, s.floor, s.stalled, s.garbage, s.pins, s.diskUsed, s.diskAvailable,
		s.levelTables, s.levelBytes, s.levelStale, s.cacheHits, s.cacheMisses, s.cacheBytes,
		s.rowHits, s.rowMisses, s.rowEvictions, s.rowEntries, s.rowBytes,
		s.compactedTables, s.compactionPaused,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *sampled) Collect(ch chan<- prometheus.Metric) {
	e := s.e
	if e.enter() != nil {
		return
	}
	defer e.leave()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(s.visible, float64(e.Visible()))
	gauge(s.flushed, float64(e.Flushed()))
	gauge(s.floor, float64(e.Floor().Physical()))
	_, stalled := e.Stalled()
	gauge(s.stalled, float64(boolToInt(stalled)))
	gauge(s.garbage, float64(len(e.Garbage())))
	gauge(s.pins, float64(e.pins.count()))
	d := e.Disk()
	gauge(s.diskUsed, float64(d.UsedBytes))
	gauge(s.diskAvailable, float64(d.AvailableBytes))
	for _, l := range e.Levels() {
		n := strconv.Itoa(l.Number)
		gauge(s.levelTables, float64(l.Tables), n)
		gauge(s.levelBytes, float64(l.SizeBytes), n)
		gauge(s.levelStale, float64(l.StaleBytes), n)
	}
	count := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v)
	}
	counter := func(d *prometheus.Desc, v uint64) { count(d, float64(v)) }
	tables, paused := e.compactions.seen()
	counter(s.compactedTables, tables)
	count(s.compactionPaused, paused.Seconds())
	rows := e.rows.stats()
	counter(s.rowHits, rows.hits)
	counter(s.rowMisses, rows.misses)
	counter(s.rowEvictions, rows.evictions)
	gauge(s.rowEntries, float64(rows.entries))
	gauge(s.rowBytes, float64(rows.bytes))
	cache := e.db.BlockCacheMetrics()
	if cache == nil {
		return
	}
	counter(s.cacheHits, cache.Hits())
	counter(s.cacheMisses, cache.Misses())
	gauge(s.cacheBytes, float64(cache.CostAdded()-cache.CostEvicted()))
}
