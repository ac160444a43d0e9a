package system

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/ridgekv/ridge/tests/harness"
)

// Etcd is three members with etcd's defaults (every write is fsynced), save for
// a quota of 8 GiB, so that a long run of puts does not end at 2.
type Etcd struct {
	// Binary is cmd/etcdnode, built.
	Binary string
	// Connections are spread over the members. Default 12: with one, etcd's
	// client is the bottleneck (one HTTP/2 connection, one reader); more than 12
	// gains nothing.
	Connections int

	members
	endpoints []string
}

// Start implements System.
func (e *Etcd) Start(ctx context.Context, dir string) error {
	all, err := addresses(6)
	if err != nil {
		return err
	}
	var cluster []string
	e.endpoints = all[:3]
	for i, peer := range all[3:] {
		cluster = append(cluster, fmt.Sprintf("etcd-%d=http://%s", i+1, peer))
	}
	for i := range 3 {
		err := e.start(fmt.Sprintf("etcd-%d", i+1), dir, e.Binary, "--client", e.endpoints[i],
			"--peer", all[3+i], "--cluster", strings.Join(cluster, ","))
		if err != nil {
			return err
		}
	}
	return harness.Eventually(ctx, time.Minute, "etcd serves", func(ctx context.Context) error {
		if err := e.check(); err != nil {
			return err
		}
		conn, err := e.Open(ctx)
		if err != nil {
			return err
		}
		return errors.Join(probe(ctx, conn, []Row{{Key: "probe"}, {Key: "probe"}, {Key: "probe"}}),
			conn.Close())
	})
}

// Open implements System.
func (e *Etcd) Open(context.Context) (Conn, error) {
	n := e.Connections
	if n == 0 {
		n = 12
	}
	c := new(etcdConn)
	for i := range n {
		one, err := clientv3.New(clientv3.Config{
			Endpoints:   []string{"http://" + e.endpoints[i%len(e.endpoints)]},
			DialTimeout: tryTimeout, Logger: zap.NewNop(),
		})
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		c.clients = append(c.clients, one)
	}
	return c, nil
}

type etcdConn struct{ clients []*clientv3.Client }

func (c *etcdConn) Caller(n int) Caller { return etcdCaller{c.clients[n%len(c.clients)]} }

// etcdBatch is the most operations etcd takes in one transaction by default.
const etcdBatch = 128

func (c *etcdConn) Load(ctx context.Context, rows []Row) error {
	return inParallel(ctx, rows, etcdBatch, 3*len(c.clients),
		func(ctx context.Context, caller int, rows []Row) error {
			ops := make([]clientv3.Op, len(rows))
			for i, row := range rows {
				ops[i] = clientv3.OpPut(row.Key, string(row.Value))
			}
			_, err := c.clients[caller%len(c.clients)].Txn(ctx).Then(ops...).Commit()
			return err
		})
}

func (c *etcdConn) Close() error {
	var faults []error
	for _, one := range c.clients {
		faults = append(faults, one.Close())
	}
	return errors.Join(faults...)
}

type etcdCaller struct{ client *clientv3.Client }

func (c etcdCaller) Get(ctx context.Context, key string) ([]byte, error) {
	r, err := c.client.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	if len(r.Kvs) == 0 {
		return nil, errMissing
	}
	return r.Kvs[0].Value, nil
}

func (c etcdCaller) Put(ctx context.Context, key string, value []byte) error {
	_, err := c.client.Put(ctx, key, string(value))
	return err
}

// Scan names the end, because etcd counts all keys up to it, limit or not: to
// the end of the keyspace that would be a million for each scan.
func (c etcdCaller) Scan(ctx context.Context, start, end string, limit int) ([]Row, error) {
	r, err := c.client.Get(ctx, start, clientv3.WithRange(end), clientv3.WithLimit(int64(limit)))
	if err != nil {
		return nil, err
	}
	rows := make([]Row, len(r.Kvs))
	for i, kv := range r.Kvs {
		rows[i] = Row{Key: string(kv.Key), Value: kv.Value}
	}
	return rows, nil
}
