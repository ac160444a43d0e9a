package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/ridgekv/ridge/tests/bench/ceiling"
	"github.com/ridgekv/ridge/tests/bench/report"
)

// ceilings measures the raw pieces once more and keeps the mean. Badger is not
// among them when batches are run: it takes its turns beside them.
func (m *match) ceilings(ctx context.Context) {
	all := ceiling.Pieces(m.rows)
	if m.batches() {
		n := len(ceiling.Badgers(m.rows))
		all = all[:len(all)-n]
	}
	m.measure(ctx, m.o.ceilings, all)
}

// badgers measures raw Badger.
func (m *match) badgers(ctx context.Context) {
	m.measure(ctx, m.o.ceilings || m.o.badgers, ceiling.Badgers(m.rows))
}

// batches reports whether the run has batch workloads.
func (m *match) batches() bool {
	return slices.ContainsFunc(m.blocks, isBatches)
}

func isBatches(block []event) bool { return slices.ContainsFunc(block, event.batch) }

// readsRows reports whether e reads single rows, which a system may have cached.
func (e event) readsRows() bool { return e.name == "get" || e.name == "a" || e.name == "b" }

func (e event) batch() bool { return e.name == "bulkwrite" || e.name == "batchget" }

// runs reports whether a system takes part in an event. Batches are for the one
// without a row cache, if there is one.
func (m *match) runs(c *contestant, e event) bool {
	if e.batch() {
		return c.name == rowless || !strings.Contains(m.o.phases, rowless)
	}
	return c.name != rowless
}

func (m *match) measure(ctx context.Context, wanted bool, pieces []ceiling.Piece) {
	if !wanted {
		return
	}
	for _, p := range pieces {
		began := time.Now()
		v, err := p.Measure(ctx, m.dir, m.o.measured)
		if err != nil {
			m.fail("ceiling", err)
			continue
		}
		progress("%-32s %10.0f %s (%.1fs)", p.Name, v, p.Unit, time.Since(began).Seconds())
		m.note(p, v)
	}
}

func (m *match) note(p ceiling.Piece, v float64) {
	for i := range m.report.Ceilings {
		if f := &m.report.Ceilings[i]; f.Name == p.Name {
			f.Rounds = append(f.Rounds, v)
			f.Value += (v - f.Value) / float64(len(f.Rounds))
			return
		}
	}
	m.report.Ceilings = append(m.report.Ceilings, report.Figure{
		Name: p.Name, Value: v, Rounds: []float64{v}, Unit: p.Unit, Note: p.Note,
	})
}
