// Package pki is the small certificate authority of one installation: for its own servers, its
// clients, and the agents of hosts that it boots.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"rerack.dev/rerack/internal/fault"
)

const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 365 * 24 * time.Hour
	skew     = 10 * time.Minute // clocks of freshly booted machines are wrong
	file     = "ca.pem"         // certificate and key together, so that a crash leaves none or both
	maxFile  = 64 << 10
)

// CA signs certificates.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Open loads the authority in dir, or makes one there. Of several who make one at once all get the same.
// It returns fault.Unsafe when others can read the key, and fault.Internal for a damaged file, which is
// left as it is: agents trust no other authority.
func Open(dir string) (*CA, error) {
	path := filepath.Join(dir, file)
	raw, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := create(dir, path); err != nil {
			return nil, &fault.Error{Kind: fault.Internal, Where: path, What: "create the certificate authority", Err: err}
		}
		raw, err = readPrivate(path)
	}
	if err != nil {
		return nil, fault.Wrap(err, "read the certificate authority", path)
	}
	pair, err := tls.X509KeyPair(raw, raw)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Internal, Where: path, What: "the certificate authority is damaged", Err: err,
			Next: "restore it from a backup; agents trust no other"}
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, &fault.Error{Kind: fault.Internal, Where: path, What: "it holds no certificate authority with an ECDSA key"}
	}
	return &CA{cert: pair.Leaf, key: key}, nil
}

// readPrivate reads a file that only its owner may read.
func readPrivate(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, &fault.Error{Kind: fault.Unsafe, What: "others can read the key", Evidence: info.Mode().String(), Next: "chmod 600 " + path}
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}

func create(dir, path string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	tmpl := &x509.Certificate{SerialNumber: serial(), Subject: pkix.Name{CommonName: "Rerack"}, IsCA: true,
		BasicConstraintsValid: true, MaxPathLenZero: true, NotBefore: now.Add(-skew), NotAfter: now.Add(caLife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return err
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	out := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k})...)
	return writeDurable(path, out)
}

// writeDurable puts the file in place whole or not at all, and on disk before it returns. One that is
// there already stays: whoever made it may have signed with it.
func writeDurable(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // crypto/rand does not fail on a supported system
	}
	return n
}

// Pool trusts this authority alone.
func (c *CA) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c.cert)
	return p
}

// PEM is the authority's certificate, without its key.
func (c *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})
}

// Server makes a certificate for a listener that is reached by these names or addresses.
func (c *CA) Server(names ...string) (tls.Certificate, error) {
	t := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	return c.issue(t)
}

// Client makes a certificate that names its bearer. libvirtd lets in only those that permit the
// encipherment of keys, whatever the key exchange needs.
func (c *CA) Client(name string) (tls.Certificate, error) {
	return c.issue(&x509.Certificate{Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
}

func (c *CA) issue(t *x509.Certificate) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := c.sign(t, &key.PublicKey, leafLife)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

func (c *CA) sign(t *x509.Certificate, pub any, life time.Duration) ([]byte, error) {
	t.SerialNumber = serial()
	t.NotBefore, t.NotAfter = time.Now().Add(-skew), time.Now().Add(life)
	t.KeyUsage |= x509.KeyUsageDigitalSignature
	return x509.CreateCertificate(rand.Reader, t, c.cert, pub, c.key)
}

// AgentName is what the certificate of a host's agent says, and what a caller must find in it: the
// machine, and the epoch of the boot that it was given for.
func AgentName(machine string, epoch uint64) *url.URL {
	return &url.URL{Scheme: "rerack", Host: "machine", Path: "/" + machine, RawQuery: fmt.Sprintf("epoch=%d", epoch)}
}

// SignAgent signs the key of a host's agent. It takes nothing from the request but the public key, so
// that a machine cannot name itself.
func (c *CA) SignAgent(csrPEM []byte, machine string, epoch uint64) ([]byte, error) {
	const maxCSR = 16 << 10
	block, _ := pem.Decode(csrPEM[:min(len(csrPEM), maxCSR)])
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, fault.New(fault.Invalid, "join: no PEM certificate request of at most 16 KiB")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, What: "join: certificate request", Err: err}
	}
	if _, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok {
		return nil, fault.New(fault.Invalid, "join: the key must be ECDSA")
	}
	der, err := c.sign(&x509.Certificate{Subject: pkix.Name{CommonName: machine}, URIs: []*url.URL{AgentName(machine, epoch)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}, csr.PublicKey, leafLife)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// NewRequest makes a key and a certificate request for it, as a booting host does.
func NewRequest() (key *ecdsa.PrivateKey, csrPEM []byte, err error) {
	key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, err
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}
