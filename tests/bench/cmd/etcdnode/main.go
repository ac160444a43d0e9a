// Command etcdnode runs one etcd member with etcd's defaults: bench-peers starts
// three. It is etcd's own server, embedded, because the module proxy has its
// source and no fresh clone has its binary.
package main

import (
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"go.etcd.io/etcd/server/v3/embed"
)

// quotaBytes is what etcd's own guide calls the largest sensible size. The
// default of 2 GiB would stop a long run of puts.
const quotaBytes = 8 << 30

func main() {
	name := flag.String("name", "", "name of the member")
	dir := flag.String("dir", "", "data directory")
	client := flag.String("client", "", "address for clients")
	peer := flag.String("peer", "", "address for members")
	cluster := flag.String("cluster", "", "all members: name=http://address,...")
	flag.Parse()
	if err := run(*name, *dir, *client, *peer, *cluster); err != nil {
		fmt.Fprintln(os.Stderr, "etcdnode:", err)
		os.Exit(1)
	}
}

func run(name, dir, client, peer, cluster string) error {
	c := embed.NewConfig()
	clients, peers := url.URL{Scheme: "http", Host: client}, url.URL{Scheme: "http", Host: peer}
	c.Name, c.Dir, c.InitialCluster, c.QuotaBackendBytes = name, dir, cluster, quotaBytes
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{clients}, []url.URL{clients}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peers}, []url.URL{peers}
	c.LogLevel = "error"
	e, err := embed.StartEtcd(c)
	if err != nil {
		return err
	}
	defer e.Close()
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, os.Interrupt, syscall.SIGTERM)
	select {
	case <-ended:
		return nil
	case err := <-e.Err():
		return err
	case <-e.Server.StopNotify():
		return fmt.Errorf("member %s has stopped", name)
	}
}
