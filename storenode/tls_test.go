package storenode_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ridgekv/ridge/pd"
	"github.com/ridgekv/ridge/storenode"
)

// makeCA writes a CA and a certificate for the loopback into dir and returns
// the files and the server's side of them.
func makeCA(t *testing.T, dir string) (storenode.TLSFiles, *tls.Config) {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	files := storenode.TLSFiles{
		CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "cert.pem"),
		Key: filepath.Join(dir, "key.pem"),
	}
	write := func(path, kind string, der []byte) {
		block := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		must(os.WriteFile(path, block, 0o600))
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	must(err)
	write(files.CA, "CERTIFICATE", caDER)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "store"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{
			x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth,
		},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	must(err)
	write(files.Cert, "CERTIFICATE", der)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)
	write(files.Key, "PRIVATE KEY", keyDER)
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	must(err)
	caCert, err := x509.ParseCertificate(caDER)
	must(err)
	pool := x509.NewCertPool()
	pool.AddCert(caCert)
	return files, &tls.Config{
		Certificates: []tls.Certificate{pair}, RootCAs: pool, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13,
	}
}

// Three stores and their PD speak TLS with client certificates everywhere: PD,
// Raft, pings, gateway.
func TestClusterWithTLS(t *testing.T) {
	files, config := makeCA(t, t.TempDir())
	address, _ := startPD(t, t.TempDir(), config, func(o *pd.Options) {
		o.TLS = &pd.TLSFiles{CA: files.CA, Cert: files.Cert, Key: files.Key}
	})
	var stores []*testStore
	for range 3 {
		o := storeOptions(t, t.TempDir(), address)
		o.TLS = &files
		stores = append(stores, startStoreTLS(t, o, config))
	}
	for _, s := range stores {
		s.waitReady()
	}
	eventually(t, 20*time.Second, "three voters", func() bool {
		r, ok := stores[0].replica(t, 1)
		return ok && len(r.GetRange().GetReplicas()) == 3
	})
	stores[0].mustPut("k", "v")
	stores[2].mustGet("k", "v")
}
