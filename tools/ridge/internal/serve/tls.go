package serve

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// Files name PEM files. All three belong together; none means plain text.
type Files struct{ CA, Cert, Key string }

// Given reports whether any file is named.
func (f Files) Given() bool { return f != Files{} }

// Server returns the server side of mutual TLS: a caller must show a
// certificate of the same authority. It is nil without files.
func (f Files) Server() (*tls.Config, error) {
	c, pool, err := f.load()
	if c == nil || err != nil {
		return nil, err
	}
	c.ClientCAs, c.ClientAuth = pool, tls.RequireAndVerifyClientCert
	return c, nil
}

// Client returns the calling side. It is nil without files.
func (f Files) Client() (*tls.Config, error) {
	c, pool, err := f.load()
	if c == nil || err != nil {
		return nil, err
	}
	c.RootCAs = pool
	return c, nil
}

func (f Files) load() (*tls.Config, *x509.CertPool, error) {
	if !f.Given() {
		return nil, nil, nil
	}
	if f.CA == "" || f.Cert == "" || f.Key == "" {
		return nil, nil, errors.New("tls: ca, cert and key belong together")
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, nil, fmt.Errorf("tls: ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, nil, fmt.Errorf("tls: ca: %s holds no PEM certificate", f.CA)
	}
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("tls: cert and key: %w", err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{cert},
		MinVersion:   tls.VersionTLS13,
	}, pool, nil
}
