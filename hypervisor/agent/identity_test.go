package agent_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/hypervisor/agent"
	"rerack.dev/rerack/hypervisor/hypervisortest"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/pki"
)

// forge signs a certificate with the key of the authority in dir that the authority itself would not.
func forge(t *testing.T, dir string, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	file := filepath.Join(dir, "ca.pem")
	ca, err := tls.LoadX509KeyPair(file, file)
	must(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature}
	change(c)
	der, err := x509.CreateCertificate(rand.Reader, c, ca.Leaf, &key.PublicKey, ca.PrivateKey)
	must(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func authority(t *testing.T) *pki.CA {
	t.Helper()
	ca, err := pki.Open(t.TempDir())
	must(t, err)
	return ca
}

func cert(t *testing.T) func(tls.Certificate, error) tls.Certificate {
	return func(c tls.Certificate, err error) tls.Certificate {
		t.Helper()
		must(t, err)
		return c
	}
}

func TestWhoMayCall(t *testing.T) {
	s := hypervisortest.NewSim(t)
	c := s.Serve(t)
	client := func(at *x509.Certificate) {
		at.Subject = pkix.Name{CommonName: "rerack"}
		at.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	for what, who := range map[string]tls.Certificate{
		"of another authority":      cert(t)(authority(t).Client("rerack")),
		"of another client":         cert(t)(s.CA.Client("auditor")),
		"of nobody":                 cert(t)(s.CA.Client("")),
		"of a server":               cert(t)(s.CA.Server("rerack")),
		"of an agent":               hypervisortest.AgentCertificate(t, s.CA, "b02", 3),
		"of an agent named like us": hypervisortest.AgentCertificate(t, s.CA, "rerack", 3),
		"of this agent":             hypervisortest.AgentCertificate(t, s.CA, "b01", 3),
		"expired":                   forge(t, s.CADir, func(at *x509.Certificate) { client(at); at.NotAfter = time.Now().Add(-time.Hour) }),
		"not valid yet":             forge(t, s.CADir, func(at *x509.Certificate) { client(at); at.NotBefore = time.Now().Add(time.Minute) }),
		"for servers, with our name": forge(t, s.CADir, func(at *x509.Certificate) {
			client(at)
			at.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}),
		"with our name among others":   forge(t, s.CADir, func(at *x509.Certificate) { client(at); at.Subject.CommonName = "rerack,auditor" }),
		"with our name in another key": forge(t, s.CADir, func(at *x509.Certificate) { client(at); at.Subject = pkix.Name{Organization: []string{"rerack"}} }),
	} {
		bad := c
		bad.Certificate = who
		d := dial(t, bad)
		_, err := d.VMs(t.Context())
		// A refusal closes the connection: who is still writing then may see that and not the reason.
		for tries := 0; fault.Is(err, fault.Unreachable) && tries < 10; tries++ {
			_, err = d.VMs(t.Context())
		}
		if !fault.Is(err, fault.Unauthorized) {
			t.Errorf("a certificate %s: %v", what, err)
		}
	}
	// The same forge makes one that passes, so what failed above did so for its reason.
	good := c
	good.Certificate = forge(t, s.CADir, client)
	if n := s.Counters().Calls; n != 0 {
		t.Fatalf("%d calls reached the host", n)
	}
	if _, err := dial(t, good).VMs(t.Context()); err != nil {
		t.Errorf("a good certificate: %v", err)
	}
}

func TestWhoMayAnswer(t *testing.T) {
	s := hypervisortest.NewSim(t)
	c := s.Serve(t)
	agentOf := func(machine string, epoch uint64) tls.Certificate {
		return hypervisortest.AgentCertificate(t, s.CA, machine, epoch)
	}
	server := func(at *x509.Certificate) {
		at.URIs = []*url.URL{pki.AgentName("b01", 3)}
		at.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	for what, who := range map[string]tls.Certificate{
		"of another machine":   agentOf("b02", 3),
		"of an earlier boot":   agentOf("b01", 2),
		"of a later boot":      agentOf("b01", 4),
		"of a longer epoch":    agentOf("b01", 33),
		"of another authority": hypervisortest.AgentCertificate(t, authority(t), "b01", 3),
		"of the control plane": cert(t)(s.CA.Client("rerack")),
		"of a server there":    cert(t)(s.CA.Server("127.0.0.1", "b01")),
		"expired":              forge(t, s.CADir, func(at *x509.Certificate) { server(at); at.NotAfter = time.Now().Add(-time.Hour) }),
		"not valid yet":        forge(t, s.CADir, func(at *x509.Certificate) { server(at); at.NotBefore = time.Now().Add(time.Minute) }),
		"with two names":       forge(t, s.CADir, func(at *x509.Certificate) { server(at); at.URIs = append(at.URIs, pki.AgentName("b02", 3)) }),
		"that is for callers": forge(t, s.CADir, func(at *x509.Certificate) {
			server(at)
			at.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}),
		"with the name elsewhere": forge(t, s.CADir, func(at *x509.Certificate) { server(at); at.DNSNames, at.URIs = []string{at.URIs[0].String()}, nil }),
	} {
		bad := c
		bad.URL = s.ServeAs(t, who)
		if err := dial(t, bad).Stop(t.Context(), "db1", 5); !fault.Is(err, fault.Unauthorized) {
			t.Errorf("a certificate %s: %v", what, err)
		}
	}
	if n := s.Counters().Calls; n != 0 {
		t.Fatalf("%d calls reached the host", n)
	}
	good := c
	good.URL = s.ServeAs(t, forge(t, s.CADir, server))
	if err := dial(t, good).Stop(t.Context(), "db1", 5); err != nil {
		t.Errorf("a good certificate: %v", err)
	}
}

func TestNothingButMutualTLS(t *testing.T) {
	s := hypervisortest.NewSim(t)
	c := s.Serve(t)
	address := strings.TrimPrefix(c.URL, "https://")
	for what, conf := range map[string]*tls.Config{
		"no certificate": {RootCAs: c.CA},
		"TLS 1.2":        {RootCAs: c.CA, Certificates: []tls.Certificate{c.Certificate}, MaxVersion: tls.VersionTLS12},
	} {
		conf.InsecureSkipVerify = true //nolint:gosec // what the server does is tested
		tr := &http.Transport{TLSClientConfig: conf}
		resp, err := (&http.Client{Transport: tr}).Get(c.URL + "/v1/vms")
		if err == nil {
			resp.Body.Close()
			t.Errorf("%s: HTTP %d", what, resp.StatusCode)
		}
		tr.CloseIdleConnections()
	}
	for what, bytes := range map[string]string{
		"plain HTTP": "GET /v1/vms HTTP/1.1\r\nHost: b01\r\n\r\n",
		"garbage":    "\x16\x03\x01\xff\xff" + strings.Repeat("\x00", 100) + "\r\n\r\n",
	} {
		conn, err := net.Dial("tcp", address)
		must(t, err)
		must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
		_, err = io.WriteString(conn, bytes)
		must(t, err)
		if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil && resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: HTTP %d", what, resp.StatusCode)
		}
		conn.Close()
	}
	if n := s.Counters().Calls; n != 0 {
		t.Fatalf("%d calls reached the host", n)
	}
}

func TestNoOlderTLS(t *testing.T) {
	s := hypervisortest.NewSim(t)
	c := s.Serve(t)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "[]") }))
	srv.TLS = &tls.Config{MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{hypervisortest.AgentCertificate(t, s.CA, "b01", 3)}}
	srv.StartTLS()
	defer srv.Close()
	c.URL = srv.URL
	if vms, err := dial(t, c).VMs(t.Context()); err == nil || vms != nil {
		t.Errorf("%v, %v", vms, err)
	}
}

func TestClientConfig(t *testing.T) {
	s := hypervisortest.NewSim(t)
	good := s.Serve(t)
	for key, spoil := range map[string]func(*agent.ClientConfig){
		"URL":         func(c *agent.ClientConfig) { c.URL = strings.Replace(c.URL, "https", "http", 1) },
		"URL ":        func(c *agent.ClientConfig) { c.URL += "/elsewhere" },
		"URL  ":       func(c *agent.ClientConfig) { c.URL += "?as=another" },
		"URL   ":      func(c *agent.ClientConfig) { c.URL = strings.Replace(c.URL, "//", "//root@", 1) },
		"URL    ":     func(c *agent.ClientConfig) { c.URL = "https://" },
		"Certificate": func(c *agent.ClientConfig) { c.Certificate = tls.Certificate{} },
		"CA":          func(c *agent.ClientConfig) { c.CA = nil },
		"Machine":     func(c *agent.ClientConfig) { c.Machine = "" },
		"Epoch":       func(c *agent.ClientConfig) { c.Epoch = 0 },
		"Timeout":     func(c *agent.ClientConfig) { c.Timeout = -1 },
	} {
		c := good
		spoil(&c)
		if _, err := agent.Dial(c); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), strings.TrimSpace(key)) {
			t.Errorf("%s: %v", key, err)
		}
	}
	good.URL += "/"
	if _, err := dial(t, good).VMs(t.Context()); err != nil {
		t.Error(err)
	}
}
