package client_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/client/internal/clustertest"
	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
)

// exampleCluster is a scripted cluster for the examples below. A real one is
// named by the gRPC addresses of its placement driver:
//
//	client.Options{PD: []string{"pd-1:7700", "pd-2:7700", "pd-3:7700"}}
func exampleCluster() (client.Options, func()) {
	t := &exampleT{}
	cluster := clustertest.New(t, 1, 3)
	return client.Options{PD: cluster.PDAddresses()}, t.finish
}

// exampleT lets an example start servers as a test would.
type exampleT struct {
	testing.TB
	cleanup []func()
}

func (t *exampleT) Helper()           {}
func (t *exampleT) Cleanup(f func())  { t.cleanup = append(t.cleanup, f) }
func (t *exampleT) Fatal(args ...any) { panic(fmt.Sprint(args...)) }
func (t *exampleT) finish() {
	for _, f := range t.cleanup {
		f()
	}
}

func Example() {
	options, stop := exampleCluster()
	defer stop()
	ctx := context.Background()

	c, err := client.Open(ctx, options)
	if err != nil {
		panic(err)
	}
	defer c.Close()

	if _, err := c.Put(ctx, []byte("user/7"), []byte("Ada")); err != nil {
		panic(err)
	}
	row, found, err := c.Get(ctx, []byte("user/7"))
	if err != nil {
		panic(err)
	}
	fmt.Println(found, string(row.Value))
	// Output: true Ada
}

func ExampleClient_CompareAndSwap() {
	options, stop := exampleCluster()
	defer stop()
	ctx := context.Background()
	c, err := client.Open(ctx, options)
	if err != nil {
		panic(err)
	}
	defer c.Close()

	for _, owner := range []string{"me", "you"} {
		r, err := c.CompareAndSwap(ctx, client.Swap{
			Key: []byte("lock"), ExpectAbsent: true, Value: []byte(owner),
		}, client.WithTTL(time.Minute))
		if err != nil {
			panic(err)
		}
		fmt.Printf("%s: %v, found %q\n", owner, r.Swapped, r.Current.Value)
	}
	// Output:
	// me: true, found ""
	// you: false, found "me"
}

func ExampleClient_Scan() {
	options, stop := exampleCluster()
	defer stop()
	ctx := context.Background()
	c, err := client.Open(ctx, options)
	if err != nil {
		panic(err)
	}
	defer c.Close()

	for _, k := range []string{"fruit/apple", "fruit/pear", "tool/saw", "fruit/fig"} {
		if _, err := c.Put(ctx, []byte(k), nil); err != nil {
			panic(err)
		}
	}
	for row, err := range c.Scan(ctx, keys.Prefix([]byte("fruit/")), client.WithKeysOnly()) {
		if err != nil {
			panic(err)
		}
		fmt.Println(string(row.Key))
	}
	for row, err := range c.ReverseScan(ctx, keys.All(), client.WithLimit(1)) {
		if err != nil {
			panic(err)
		}
		fmt.Println("last:", string(row.Key))
	}
	// Output:
	// fruit/apple
	// fruit/fig
	// fruit/pear
	// last: tool/saw
}

func ExampleSnapshot() {
	options, stop := exampleCluster()
	defer stop()
	ctx := context.Background()
	c, err := client.Open(ctx, options)
	if err != nil {
		panic(err)
	}
	defer c.Close()

	_, _ = c.Put(ctx, []byte("k"), []byte("old"))
	at, err := c.Timestamp(ctx)
	if err != nil {
		panic(err)
	}
	_, _ = c.Put(ctx, []byte("k"), []byte("new"))

	row, _, err := c.Get(ctx, []byte("k"), client.WithConsistency(client.Snapshot(at)))
	fmt.Println(string(row.Value), err)
	// Output: old <nil>
}

// A bulk that stopped goes on with what is pending. What is unknown is the
// caller's to judge: writing it again is harmless only if nobody else writes
// these keys.
func ExampleClient_BulkWrite() {
	options, stop := exampleCluster()
	defer stop()
	ctx := context.Background()
	c, err := client.Open(ctx, options)
	if err != nil {
		panic(err)
	}
	defer c.Close()

	var load []client.Mutation
	for i := range 100 {
		load = append(load, client.Mutation{Key: fmt.Appendf(nil, "row/%03d", i)})
	}
	applied := 0
	for len(load) > 0 {
		r, err := c.BulkWrite(ctx, load)
		applied += r.Applied
		if client.IsUnknown(err) {
			fmt.Println(len(r.Unknown), "mutations may or may not be applied")
		}
		rest := make([]client.Mutation, 0, len(r.Pending))
		for _, i := range r.Pending {
			rest = append(rest, load[i])
		}
		load = rest
	}
	fmt.Println("applied", applied)
	// Output: applied 100
}

// After an unknown outcome the client does not try again: the write may have
// happened, and somebody may have written since. Reading tells what is there.
func ExampleIsUnknown() {
	options, stop := exampleCluster()
	defer stop()
	ctx := context.Background()
	c, err := client.Open(ctx, options)
	if err != nil {
		panic(err)
	}
	defer c.Close()

	_, err = c.Put(ctx, []byte("k"), []byte("v"))
	var refused errs.InvalidArgument
	switch {
	case err == nil:
		fmt.Println("written")
	case client.IsUnknown(err):
		fmt.Println("perhaps written: read before you write again")
	case errors.As(err, &refused):
		fmt.Println("not written, and never will be:", refused.Reason)
	default:
		fmt.Println("not written:", err)
	}
	// Output: written
}
