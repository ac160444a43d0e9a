package pd

import (
	"github.com/ridgekv/ridge/pd/internal/meta"
	"github.com/ridgekv/ridge/pd/internal/settings"
)

// given are the settings this node was started with.
func (o Options) given() settings.Settings {
	return settings.Settings{
		Replicas: o.Replicas, SplitSizeBytes: o.SplitSizeBytes, StoreHeartbeat: o.StoreHeartbeat,
		StoreDownAfter: o.StoreDownAfter, Retention: o.Retention,
		OperatorTimeout: o.OperatorTimeout, StoreMoves: o.StoreMoves,
		LeaderTransfers: o.LeaderTransfers, ImageBytesPerSecond: o.ImageBytesPerSecond,
		SplitLoadOps: o.SplitLoadOps, LocationLabels: o.LocationLabels,
		HighWaterPercent: o.HighWaterPercent, TolerancePercent: o.TolerancePercent,
	}
}

// inForce are the settings that count now: what people have set, and for the
// rest what this node was started with. Settings of a newer version that this
// one does not understand do not count.
func inForce(o Options, m *meta.Meta) settings.Settings {
	set, _ := m.Settings()
	given := o.given()
	s, _ := settings.Overlay(given, set)
	if s.Validate() != nil {
		return given // judged by a version with other bounds
	}
	return s
}
