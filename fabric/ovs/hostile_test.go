package ovs_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/fabric/ovs"
	"rerack.dev/rerack/internal/fault"
)

// hostile is a switch that answers whatever it is told to, to anything. Every write of ours is answered
// by the next of its answers.
func hostile(t testing.TB, answers ...[]byte) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				buf := make([]byte, 64<<10)
				for _, a := range answers {
					if _, err := conn.Read(buf); err != nil {
						return
					}
					if _, err := io.Copy(conn, bytes.NewReader(a)); err != nil {
						return
					}
				}
			}()
		}
	}()
	return "tcp:" + l.Addr().String()
}

func TestHostileAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		want   fault.Kind
	}{
		"garbage":         {"\x00\x01\x02", fault.Internal},
		"not a message":   {`[1,2,3]`, fault.Internal},
		"closed":          {"", fault.Unreachable},
		"half":            {ovs.HonestRead[:300], fault.Unreachable},
		"refused":         {`{"id":1,"result":null,"error":"unknown database"}`, fault.Busy},
		"no result":       {`{"id":1,"result":[],"error":null}`, fault.Internal},
		"null results":    {`{"id":1,"result":[null,null,null,null],"error":null}`, fault.Internal},
		"another's":       {strings.Repeat(`{"id":7,"result":[],"error":null}`, 100), fault.Internal},
		"endless":         {strings.Repeat(" ", 3<<20), fault.Internal},
		"deep":            {`{"id":1,"result":` + strings.Repeat("[", 100_000), fault.Internal},
		"errors":          {`{"id":1,"result":[{"error":"unknown table"}],"error":null}`, fault.Unsupported},
		"no bridge":       {`{"id":1,"result":[{"rows":[]},{"rows":[]},{"rows":[]},{"rows":[]}],"error":null}`, fault.NotFound},
		"set of sets":     {strings.Replace(ovs.HonestRead, `"tag":5`, `"tag":["set",[["set",[1]]]]`, 1), fault.Internal},
		"two tags":        {strings.Replace(ovs.HonestRead, `"tag":5`, `"tag":["set",[1,2]]`, 1), fault.Internal},
		"tag of text":     {strings.Replace(ovs.HonestRead, `"tag":5`, `"tag":"5"`, 1), fault.Internal},
		"null tag":        {strings.Replace(ovs.HonestRead, `"tag":5`, `"tag":null`, 1), fault.Internal},
		"no uuid":         {strings.Replace(ovs.HonestRead, `["uuid","00000000-0000-0000-0000-00000000000a"]`, `["uuid"]`, 1), fault.Internal},
		"epoch of text":   {strings.Replace(ovs.HonestRead, `"3"`, `"three"`, 1), fault.Internal},
		"epoch too large": {strings.Replace(ovs.HonestRead, `"3"`, `"99999999999999999999"`, 1), fault.Internal},
		"map of triples":  {strings.Replace(ovs.HonestRead, `["rerack-epoch","3"]`, `["a","b","c"]`, 1), fault.Internal},
		"no daemon row":   {strings.Replace(ovs.HonestRead, `"next_cfg":1`, `"next_cfg":["set",[]]`, 1), fault.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			drv, err := ovs.New(ovs.Config{Endpoint: hostile(t, []byte(c.answer)), Bridge: "br0", MaxBytes: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := drv.Ports(within(t, 20*time.Second)); !fault.Is(err, c.want) {
				t.Errorf("%v, want kind %s", err, c.want)
			}
		})
	}
}

func TestAnswersTheServersEcho(t *testing.T) {
	echo := `{"id":"echo","method":"echo","params":["alive?"]}`
	drv, err := ovs.New(ovs.Config{Endpoint: hostile(t, []byte(echo), []byte(ovs.HonestRead)), Bridge: "br0"})
	if err != nil {
		t.Fatal(err)
	}
	ports, err := drv.Ports(within(t, 20*time.Second))
	if err != nil || len(ports) != 1 || ports[0].Untagged != 5 || ports[0].Epoch != 3 || ports[0].Link != driver.LinkUp {
		t.Fatalf("%+v, %v", ports, err)
	}
}

func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}
