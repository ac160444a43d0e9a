// Command natsnode runs one nats-server with JetStream and the server's
// defaults: bench-peers starts three. It is NATS' own server, embedded, because
// the module proxy has its source and no fresh clone has its binary.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

func main() {
	o := &server.Options{JetStream: true, NoSigs: true}
	flag.StringVar(&o.ServerName, "name", "", "name of the server")
	flag.StringVar(&o.StoreDir, "dir", "", "data directory")
	flag.StringVar(&o.Host, "host", "127.0.0.1", "where it listens")
	flag.IntVar(&o.Port, "client", 0, "port for clients")
	flag.IntVar(&o.Cluster.Port, "peer", 0, "port for the other servers")
	routes := flag.String("routes", "", "the other servers: nats://host:port,...")
	flag.Parse()
	o.Cluster.Name, o.Cluster.Host = "bench", o.Host
	o.Routes = server.RoutesFromStr(*routes)
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "natsnode:", err)
		os.Exit(1)
	}
}

func run(o *server.Options) error {
	s, err := server.NewServer(o)
	if err != nil {
		return err
	}
	s.ConfigureLogger()
	s.Start()
	if !s.ReadyForConnections(30 * time.Second) {
		return fmt.Errorf("%s is not ready after 30s", o.ServerName)
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, os.Interrupt, syscall.SIGTERM)
	<-ended
	s.Shutdown()
	s.WaitForShutdown()
	return nil
}
