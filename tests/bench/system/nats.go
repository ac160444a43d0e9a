package system

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/ridgekv/ridge/tests/harness"
)

// NATS is one JetStream key-value bucket with three replicas on three servers:
// file storage, the server's defaults. Two things to know when reading its
// figures: by default a write is acknowledged before any fsync (the file is
// synced every two minutes), and a Get is answered by any replica, so it is not
// linearizable. It has no ordered scan.
type NATS struct {
	// Binary is cmd/natsnode, built.
	Binary string
	// Connections are spread over the servers. Default 12, as with etcd.
	Connections int

	members
	urls []string
}

const natsBucket = "bench"

// Start implements System.
func (s *NATS) Start(ctx context.Context, dir string) error {
	all, err := addresses(6)
	if err != nil {
		return err
	}
	var routes []string
	for i := range 3 {
		s.urls = append(s.urls, "nats://"+all[i])
		routes = append(routes, "nats://"+all[3+i])
	}
	for i := range 3 {
		_, client, _ := net.SplitHostPort(all[i])
		_, peer, _ := net.SplitHostPort(all[3+i])
		err := s.start(fmt.Sprintf("nats-%d", i+1), dir, s.Binary,
			"--client", client, "--peer", peer, "--routes", strings.Join(routes, ","))
		if err != nil {
			return err
		}
	}
	return harness.Eventually(ctx, time.Minute, "the bucket exists", s.create)
}

// create makes the bucket; it is repeated until the servers have found each
// other.
func (s *NATS) create(ctx context.Context) error {
	if err := s.check(); err != nil {
		return err
	}
	nc, err := nats.Connect(s.urls[0], nats.Timeout(time.Second))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	kv, err := js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: natsBucket, Replicas: 3, Storage: jetstream.FileStorage,
	})
	if err != nil {
		return err
	}
	_, err = kv.Put(ctx, "probe", nil)
	return err
}

// Open implements System.
func (s *NATS) Open(ctx context.Context) (Conn, error) {
	n := s.Connections
	if n == 0 {
		n = 12
	}
	c := new(natsConn)
	for i := range n {
		one, err := s.connect(ctx, s.urls[i%len(s.urls)])
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		c.conns = append(c.conns, one)
	}
	return c, nil
}

func (s *NATS) connect(ctx context.Context, url string) (natsCaller, error) {
	nc, err := nats.Connect(url, nats.Timeout(tryTimeout))
	if err != nil {
		return natsCaller{}, err
	}
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(natsPending))
	if err != nil {
		nc.Close()
		return natsCaller{}, err
	}
	kv, err := js.KeyValue(ctx, natsBucket)
	if err != nil {
		nc.Close()
		return natsCaller{}, err
	}
	return natsCaller{nc, js, kv}, nil
}

type natsConn struct{ conns []natsCaller }

func (c *natsConn) Caller(n int) Caller { return c.conns[n%len(c.conns)] }

// natsPending bounds the unacknowledged writes of a connection while loading:
// the server drops what comes when its own queue is full.
const natsPending = 256

func (c *natsConn) Load(ctx context.Context, rows []Row) error {
	return inParallel(ctx, rows, natsPending, len(c.conns),
		func(ctx context.Context, caller int, rows []Row) error {
			js := c.conns[caller].js
			futures := make([]jetstream.PubAckFuture, len(rows))
			for i, row := range rows {
				var err error
				futures[i], err = js.PublishAsync("$KV."+natsBucket+"."+row.Key, row.Value)
				if err != nil {
					return err
				}
			}
			for _, f := range futures {
				select {
				case <-f.Ok():
				case err := <-f.Err():
					return err
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		})
}

func (c *natsConn) Close() error {
	for _, one := range c.conns {
		one.conn.Close()
	}
	return nil
}

type natsCaller struct {
	conn *nats.Conn
	js   jetstream.JetStream
	kv   jetstream.KeyValue
}

func (c natsCaller) Get(ctx context.Context, key string) ([]byte, error) {
	entry, err := c.kv.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	return entry.Value(), nil
}

func (c natsCaller) Put(ctx context.Context, key string, value []byte) error {
	_, err := c.kv.Put(ctx, key, value)
	return err
}

func (c natsCaller) Scan(context.Context, string, string, int) ([]Row, error) {
	return nil, ErrUnsupported
}
