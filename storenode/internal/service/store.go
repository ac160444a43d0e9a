package service

import (
	"context"
	"fmt"
	"runtime/debug"

	"google.golang.org/grpc"

	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	storepb "github.com/ridgekv/ridge/proto/ridge/store/v1"
)

// storeDoor lets StoreService calls in from Open to Close: a store that drains
// must not be taken for a dead one.
type storeDoor struct {
	storepb.UnimplementedStoreServiceServer
	s *Service
}

// admit checks who is meant and turns panics of f into errors.
func (d storeDoor) admit(ctx context.Context, f func(*Core) error) (err error) {
	core, leave := d.s.enterStore()
	if core == nil {
		return errs.Unavailable{Part: "store"}
	}
	defer leave()
	defer func() {
		if p := recover(); p != nil {
			d.s.metrics.panics.Inc()
			d.s.o.Logger.Error("store handler panicked", "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("service: panic: %v", p)
		}
	}()
	want, err := identityOf(ctx)
	if err != nil {
		return err
	}
	if err := checkIdentity(core, want); err != nil {
		return err
	}
	return f(core)
}

// Status implements StoreService.
func (d storeDoor) Status(
	ctx context.Context, in *storepb.StatusRequest,
) (out *storepb.StatusResponse, _ error) {
	err := d.admit(ctx, func(c *Core) (err error) {
		out, err = c.Store.Status(ctx, in)
		return err
	})
	if err != nil {
		out = &storepb.StatusResponse{Error: errs.ToProto(err)}
	}
	return out, nil
}

// ListReplicas implements StoreService.
func (d storeDoor) ListReplicas(
	ctx context.Context, in *storepb.ListReplicasRequest,
) (out *storepb.ListReplicasResponse, _ error) {
	err := d.admit(ctx, func(c *Core) (err error) {
		out, err = c.Store.ListReplicas(ctx, in)
		return err
	})
	if err != nil {
		out = &storepb.ListReplicasResponse{Error: errs.ToProto(err)}
	}
	return out, nil
}

// ChildStarted implements StoreService.
func (d storeDoor) ChildStarted(
	ctx context.Context, in *storepb.ChildStartedRequest,
) (out *storepb.ChildStartedResponse, _ error) {
	err := d.admit(ctx, func(c *Core) (err error) {
		out, err = c.Store.ChildStarted(ctx, in)
		return err
	})
	if err != nil {
		out = &storepb.ChildStartedResponse{Error: errs.ToProto(err)}
	}
	return out, nil
}

// Checksum implements StoreService.
func (d storeDoor) Checksum(
	ctx context.Context, in *storepb.ChecksumRequest,
) (out *storepb.ChecksumResponse, _ error) {
	err := d.admit(ctx, func(c *Core) (err error) {
		out, err = c.Store.Checksum(ctx, in)
		return err
	})
	if err != nil {
		out = &storepb.ChecksumResponse{Error: errs.ToProto(err)}
	}
	return out, nil
}

// Ping implements StoreService: every message is answered at once, until the
// store has stopped.
func (d storeDoor) Ping(
	stream grpc.BidiStreamingServer[storepb.PingRequest, storepb.PingResponse],
) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil // The other store left.
		}
		out := &storepb.PingResponse{Seq: m.GetSeq()}
		err = d.admit(stream.Context(), func(c *Core) error {
			out = c.Pong(m)
			return nil
		})
		out.Error = firstError(out.GetError(), err)
		if err := stream.Send(out); err != nil {
			return err
		}
		if out.GetError() != nil {
			return nil
		}
	}
}

func firstError(e *kvpb.Error, err error) *kvpb.Error {
	if e != nil {
		return e
	}
	return errs.ToProto(err)
}
