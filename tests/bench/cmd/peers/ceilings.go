package main

import (
	"context"
	"time"

	"github.com/ridgekv/ridge/tests/bench/ceiling"
	"github.com/ridgekv/ridge/tests/bench/report"
)

// ceilings measures the raw pieces once more and keeps the mean.
func (m *match) ceilings(ctx context.Context) {
	if !m.o.ceilings {
		return
	}
	for _, p := range ceiling.Pieces(m.o.keys) {
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
