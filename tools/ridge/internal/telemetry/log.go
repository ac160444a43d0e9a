// Package telemetry makes a process visible: logs, metrics, health, profiles.
package telemetry

import (
	"io"
	"log/slog"
)

// Logger writes records of at least the level to w, as "text" or "json".
func Logger(w io.Writer, level, format string) *slog.Logger {
	var least slog.Level
	if err := least.UnmarshalText([]byte(level)); err != nil {
		least = slog.LevelInfo
	}
	options := &slog.HandlerOptions{Level: least}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
