// Package dial opens every gRPC connection of Ridge. Law: it holds the only
// grpc.NewClient, so limits, keepalive and TLS are the same everywhere.
package dial

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

const (
	// DefaultTimeout is how long one attempt to connect may take. A store that
	// was killed refuses at once; one whose host is gone must not cost more.
	DefaultTimeout = 500 * time.Millisecond
	// MaxMessageBytes bounds one gRPC message that is received. A message carries
	// the answers to many requests, and one that is too large would break the
	// stream for all of them; the requests bound what can come back.
	MaxMessageBytes = 1 << 30

	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 2 * time.Second
	windowBytes      = 4 << 20
)

// Options say how to connect.
type Options struct {
	// TLS is the client side of the connection; nil means plain text.
	TLS *tls.Config
	// Timeout bounds one attempt to connect. Default 500ms. A longer one makes
	// failover slower when a host vanishes without a reset.
	Timeout time.Duration
	// UserAgent names the caller in the server's logs. Default "ridge".
	UserAgent string
}

// New returns a connection to address. It does not block: the first call
// connects, and fails at once while the address cannot be reached.
func New(address string, o Options) (*grpc.ClientConn, error) {
	timeout := o.Timeout
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	agent := o.UserAgent
	if agent == "" {
		agent = "ridge"
	}
	creds := insecure.NewCredentials()
	if o.TLS != nil {
		creds = credentials.NewTLS(o.TLS.Clone())
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(creds),
		grpc.WithUserAgent(agent),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			d := net.Dialer{Timeout: timeout, KeepAlive: keepaliveTime}
			return d.DialContext(ctx, "tcp", addr)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: 20 * time.Millisecond, Multiplier: 1.6,
				Jitter: 0.2, MaxDelay: 500 * time.Millisecond,
			},
			MinConnectTimeout: timeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: keepaliveTime, Timeout: keepaliveTimeout,
		}),
		grpc.WithInitialWindowSize(windowBytes),
		grpc.WithInitialConnWindowSize(windowBytes),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessageBytes)),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, fmt.Errorf("dial: %s: %w", address, err)
	}
	return conn, nil
}
