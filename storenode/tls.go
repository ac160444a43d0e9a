package storenode

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
)

// clientTLS is the client side of connections to PD and to other stores; nil
// without TLS.
func (o Options) clientTLS() (*tls.Config, error) {
	if o.TLS == nil {
		return nil, nil
	}
	pem, err := os.ReadFile(o.TLS.CA)
	if err != nil {
		return nil, fmt.Errorf("storenode: tls: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("storenode: tls: %s holds no certificate", o.TLS.CA)
	}
	cert, err := tls.LoadX509KeyPair(o.TLS.Cert, o.TLS.Key)
	if err != nil {
		return nil, fmt.Errorf("storenode: tls: %w", err)
	}
	return &tls.Config{
		RootCAs: roots, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13,
	}, nil
}
