package service

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ridgekv/ridge/pd/internal/meta"
	"github.com/ridgekv/ridge/pd/internal/settings"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// maxPause bounds one pause: a cluster that nobody resumes balances again.
const maxPause = 7 * 24 * time.Hour

// admin notes what a person did.
func (l *Leading) admin(what string, stores ...uint64) {
	l.Note(&pdpb.Decision{
		Kind: pdpb.DecisionKind_DECISION_KIND_ADMIN, What: what, Why: "by hand", StoreIds: stores,
	})
}

// ListSettings shows PD's settings.
func (s *Service) ListSettings(
	_ context.Context, req *pdpb.ListSettingsRequest,
) (*pdpb.ListSettingsResponse, error) {
	m, l, err := s.lead(req.GetHeader())
	if err != nil {
		return &pdpb.ListSettingsResponse{Error: s.pdError(err)}, nil
	}
	set, _ := m.Settings()
	return &pdpb.ListSettingsResponse{Settings: settings.List(l.Given, set)}, nil
}

// SetSettings changes PD's settings, all that are named or none.
func (s *Service) SetSettings(
	ctx context.Context, req *pdpb.SetSettingsRequest,
) (*pdpb.SetSettingsResponse, error) {
	m, l, err := s.confirmed(ctx, req.GetHeader())
	if err == nil {
		err = s.setSettings(ctx, m, l, req)
	}
	if err != nil {
		return &pdpb.SetSettingsResponse{Error: s.pdError(err)}, nil
	}
	set, _ := m.Settings()
	return &pdpb.SetSettingsResponse{Settings: settings.List(l.Given, set)}, nil
}

func (s *Service) setSettings(
	ctx context.Context, m *meta.Meta, l *Leading, req *pdpb.SetSettingsRequest,
) error {
	if len(req.GetSet())+len(req.GetUnset()) == 0 {
		return invalid("nothing to set")
	}
	old, version := m.Settings()
	next := maps.Clone(old)
	for _, key := range req.GetUnset() {
		if !settings.Known(key) {
			return invalid("no setting is called %q; there are %s", key, settings.Keys())
		}
		delete(next, key)
	}
	maps.Copy(next, req.GetSet())
	// Only what is asked for now must be understood: a newer version may have
	// set something else.
	if _, err := settings.Overlay(l.Given, req.GetSet()); err != nil {
		return invalid("%s", oneLine(err))
	}
	now, _ := settings.Overlay(l.Given, next)
	if err := now.Validate(); err != nil {
		return invalid("%s", oneLine(err))
	}
	_, err := fromResult(m.Propose(ctx, &pdpb.Command{Command: &pdpb.Command_PutSettings{
		PutSettings: &pdpb.PutSettings{
			ExpectedVersion: version, Set: req.GetSet(), Unset: req.GetUnset(), Config: now.Config(),
		},
	}}))
	if err != nil {
		return err
	}
	l.noteSettings(old, next, req)
	return nil
}

// noteSettings tells who looks later what was changed, and from what.
func (l *Leading) noteSettings(old, next map[string]string, req *pdpb.SetSettingsRequest) {
	before, after := settings.List(l.Given, old), settings.List(l.Given, next)
	for i, b := range before {
		_, asked := req.GetSet()[b.GetKey()]
		if a := after[i]; asked || slices.Contains(req.GetUnset(), b.GetKey()) {
			what := fmt.Sprintf("setting %s: %s, was %s", b.GetKey(), a.GetValue(), b.GetValue())
			if !a.GetSet() {
				what += " (as given to the PD nodes)"
			}
			l.admin(what)
		}
	}
}

// oneLine renders joined errors for a table.
func oneLine(err error) string {
	return strings.ReplaceAll(errors.Join(err).Error(), "\n", "; ")
}

// running returns the pause if it is not over yet.
func running(p *pdpb.Pause, now time.Time) *pdpb.Pause {
	if p == nil || p.GetUntilUnixMs() <= uint64(now.UnixMilli()) {
		return nil
	}
	return p
}

// GetSchedule shows whether planning is paused.
func (s *Service) GetSchedule(
	_ context.Context, req *pdpb.GetScheduleRequest,
) (*pdpb.GetScheduleResponse, error) {
	m, l, err := s.lead(req.GetHeader())
	if err != nil {
		return &pdpb.GetScheduleResponse{Error: s.pdError(err)}, nil
	}
	now := time.Now()
	return &pdpb.GetScheduleResponse{
		Pause: running(m.Pause(), now), Waiting: l.Waiting(),
		OperatorCount: uint64(len(l.Operators.List(now))),
	}, nil
}

// SetSchedule pauses planning for a time, or resumes it.
func (s *Service) SetSchedule(
	ctx context.Context, req *pdpb.SetScheduleRequest,
) (*pdpb.SetScheduleResponse, error) {
	m, l, err := s.confirmed(ctx, req.GetHeader())
	length := time.Duration(min(req.GetForMs(), uint64(maxPause.Milliseconds())+1)) * time.Millisecond
	if err == nil && length > maxPause {
		err = invalid("a pause lasts at most %s; pause again before it ends", maxPause)
	}
	if err != nil {
		return &pdpb.SetScheduleResponse{Error: s.pdError(err)}, nil
	}
	pause, what := &pdpb.Pause{}, "scheduling resumes"
	if length > 0 {
		until := time.Now().Add(length)
		pause.UntilUnixMs, pause.All = uint64(until.UnixMilli()), req.GetAll()
		what = "balancing is paused until " + until.UTC().Format(time.RFC3339)
		if req.GetAll() {
			what = "all scheduling, repair too, is paused until " + until.UTC().Format(time.RFC3339)
		}
	}
	_, err = fromResult(m.Propose(ctx, &pdpb.Command{Command: &pdpb.Command_PutPause{
		PutPause: &pdpb.PutPause{Pause: pause},
	}}))
	if err != nil {
		return &pdpb.SetScheduleResponse{Error: s.pdError(err)}, nil
	}
	l.admin(what)
	return &pdpb.SetScheduleResponse{Pause: running(m.Pause(), time.Now())}, nil
}
