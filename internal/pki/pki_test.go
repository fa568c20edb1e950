package pki_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/pki"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB) *pki.CA {
	t.Helper()
	ca, err := pki.Open(filepath.Join(t.TempDir(), "pki"))
	must(t, err)
	return ca
}

func TestTheAuthorityOutlivesARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "pki")
	a, err := pki.Open(dir)
	must(t, err)
	b, err := pki.Open(dir)
	must(t, err)
	if string(a.PEM()) != string(b.PEM()) {
		t.Error("another authority after a restart")
	}
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		must(t, err)
		info, err := d.Info()
		must(t, err)
		if want := map[bool]fs.FileMode{true: 0o700, false: 0o600}[d.IsDir()]; info.Mode().Perm() != want {
			t.Errorf("%s has mode %o", path, info.Mode().Perm())
		}
		return nil
	}))
	if strings.Contains(string(a.PEM()), "PRIVATE") {
		t.Error("the key is given away")
	}
}

func TestAllWhoOpenAtOnceGetOneAuthority(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	pems := make([]string, 32)
	for i := range pems {
		wg.Go(func() {
			ca, err := pki.Open(dir)
			if err != nil {
				t.Error(err)
				return
			}
			pems[i] = string(ca.PEM())
		})
	}
	wg.Wait()
	for _, p := range pems {
		if p != pems[0] {
			t.Fatal("two authorities")
		}
	}
	left, err := os.ReadDir(dir)
	must(t, err)
	if len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestADamagedAuthorityIsNotReplaced(t *testing.T) {
	ca := open(t)
	leaf, err := ca.Client("x")
	must(t, err)
	key, err := x509.MarshalPKCS8PrivateKey(leaf.PrivateKey)
	must(t, err)
	noCA := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]})) +
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	for name, content := range map[string]string{"empty": "", "rubbish": "rubbish", "no key": string(ca.PEM()), "no authority": noCA} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ca.pem")
			must(t, os.WriteFile(path, []byte(content), 0o600))
			if _, err := pki.Open(filepath.Dir(path)); !fault.Is(err, fault.Internal) || strings.Contains(err.Error(), "PRIVATE") {
				t.Errorf("got %v", err)
			}
			if now, err := os.ReadFile(path); err != nil || string(now) != content {
				t.Errorf("the file was changed: %v", err)
			}
		})
	}
	t.Run("others can read it", func(t *testing.T) {
		dir := t.TempDir()
		_, err := pki.Open(dir)
		must(t, err)
		must(t, os.Chmod(filepath.Join(dir, "ca.pem"), 0o640))
		if _, err := pki.Open(dir); !fault.Is(err, fault.Unsafe) {
			t.Errorf("got %v", err)
		}
	})
}

// A machine asks for a certificate that would make it another, an authority, and a web server.
func TestSignAgentTakesOnlyTheKey(t *testing.T) {
	ca := open(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	evil, err := url.Parse("rerack://machine/other?epoch=99")
	must(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "rerack"}, DNSNames: []string{"rerack.example"}, IPAddresses: []net.IP{{10, 0, 0, 1}},
		URIs: []*url.URL{evil}, EmailAddresses: []string{"root@example"},
		ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}}, // CA: true
	}, key)
	must(t, err)
	out, err := ca.SignAgent(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), "m1", 7)
	must(t, err)
	block, _ := pem.Decode(out)
	c, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	if !key.PublicKey.Equal(c.PublicKey) {
		t.Error("the certificate is for another key")
	}
	if c.IsCA || c.Subject.CommonName != "m1" || len(c.DNSNames)+len(c.IPAddresses)+len(c.EmailAddresses) != 0 ||
		len(c.URIs) != 1 || c.URIs[0].String() != "rerack://machine/m1?epoch=7" {
		t.Errorf("subject %s, CA %t, names %v %v %v", c.Subject, c.IsCA, c.DNSNames, c.IPAddresses, c.URIs)
	}
	if _, err := c.Verify(x509.VerifyOptions{Roots: ca.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		t.Error(err)
	}
	if life := time.Until(c.NotAfter); life > 366*24*time.Hour {
		t.Errorf("it lives for %s", life)
	}
}

func TestSignAgentRefuses(t *testing.T) {
	ca := open(t)
	_, good, err := pki.NewRequest()
	must(t, err)
	_, weak, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, weak)
	must(t, err)
	forged, _ := pem.Decode(good)
	forged.Bytes[len(forged.Bytes)-1] ^= 1
	for name, csr := range map[string]string{
		"nothing":           "",
		"rubbish":           "rubbish",
		"a certificate":     string(ca.PEM()),
		"a forged signer":   string(pem.EncodeToMemory(forged)),
		"another algorithm": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})),
		"too long":          strings.Repeat(" ", 16<<10) + string(good),
	} {
		if _, err := ca.SignAgent([]byte(csr), "m1", 1); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzSignAgent(f *testing.F) {
	ca := open(f)
	_, good, err := pki.NewRequest()
	must(f, err)
	f.Add(good)
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----"))
	f.Fuzz(func(t *testing.T, csr []byte) {
		out, err := ca.SignAgent(csr, "m1", 3)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("kind of %v", err)
			}
			return
		}
		block, _ := pem.Decode(out)
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil || c.IsCA || c.Subject.CommonName != "m1" {
			t.Fatalf("signed %v %v", c.Subject, err)
		}
	})
}

// handshake serves one TLS connection with cert and dials it with client.
func handshake(t *testing.T, cert tls.Certificate, client *tls.Config) error {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := l.Accept(); err == nil {
			_ = c.(*tls.Conn).HandshakeContext(t.Context()) // the client's error is what is tested
			_ = c.Close()
		}
	}()
	defer func() { _ = l.Close(); <-done }()
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: client}
	c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		return err
	}
	return c.Close()
}

func TestTrust(t *testing.T) {
	ours, other := open(t), open(t)
	cert, err := ours.Server("127.0.0.1", "bmc.example")
	must(t, err)
	sum := sha256.Sum256(cert.Certificate[0])
	pin := strings.ToUpper(hex.EncodeToString(sum[:]))
	colons := strings.Join(pairs(pin), ":")
	wrong := strings.Repeat("00", sha256.Size)
	for _, tt := range []struct {
		name, ca, pin string
		ok            bool
	}{
		{"its authority", string(ours.PEM()), "", true},
		{"another authority", string(other.PEM()), "", false},
		{"the system's", "", "", false},
		{"its fingerprint", "", pin, true},
		{"its fingerprint with colons", "", " " + colons + "\n", true},
		{"another fingerprint", "", wrong, false},
		{"a pin is more than an authority", string(ours.PEM()), wrong, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := pki.Trust(tt.ca, tt.pin)
			must(t, err)
			c.ServerName = "127.0.0.1"
			if err := handshake(t, cert, c); (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
		})
	}
	for name, in := range map[string][2]string{"short": {"", "abcd"}, "no hex": {"", strings.Repeat("zz", 32)}, "no certificate": {"rubbish", ""}} {
		if _, err := pki.Trust(in[0], in[1]); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func pairs(s string) (out []string) {
	for i := 0; i < len(s); i += 2 {
		out = append(out, s[i:i+2])
	}
	return out
}

// A certificate for one purpose is none for another.
func TestCertificatesHaveOnePurpose(t *testing.T) {
	ca := open(t)
	server, err := ca.Server("127.0.0.1")
	must(t, err)
	client, err := ca.Client("rerack")
	must(t, err)
	for name, c := range map[string]struct {
		cert tls.Certificate
		bad  x509.ExtKeyUsage
	}{"server": {server, x509.ExtKeyUsageClientAuth}, "client": {client, x509.ExtKeyUsageServerAuth}} {
		leaf, err := x509.ParseCertificate(c.cert.Certificate[0])
		must(t, err)
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: ca.Pool(), KeyUsages: []x509.ExtKeyUsage{c.bad}}); err == nil {
			t.Errorf("the %s's certificate serves for the other side", name)
		}
	}
}
