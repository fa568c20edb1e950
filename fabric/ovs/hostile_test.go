package ovs_test

import (
	"bytes"
	"context"
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
// by the next of its answers. It hangs up on who has nothing to say for as long as its patience lasts.
func hostile(t testing.TB, patience time.Duration, answers ...[]byte) string {
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
					_ = conn.SetReadDeadline(time.Now().Add(patience))
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

// honest is what a real server answers to the first and the second request of a change.
const (
	honestRead = `{"id":1,"error":null,"result":[` +
		`{"rows":[{"name":"br0","ports":["set",[["uuid","00000000-0000-0000-0000-000000000001"],["uuid","00000000-0000-0000-0000-000000000002"]]]}]},` +
		`{"rows":[{"_uuid":["uuid","00000000-0000-0000-0000-000000000001"],"name":"p1","interfaces":["uuid","00000000-0000-0000-0000-00000000000a"],"vlan_mode":["set",[]],"tag":5,"trunks":["set",[]],"protected":false,"external_ids":["map",[["rerack-epoch","3"]]]},` +
		`{"_uuid":["uuid","00000000-0000-0000-0000-000000000002"],"name":"br0","interfaces":["uuid","00000000-0000-0000-0000-00000000000b"],"vlan_mode":["set",[]],"tag":["set",[]],"trunks":["set",[]],"protected":false,"external_ids":["map",[]]}]},` +
		`{"rows":[{"_uuid":["uuid","00000000-0000-0000-0000-00000000000a"],"link_state":"up"}]},` +
		`{"rows":[{"_uuid":["uuid","00000000-0000-0000-0000-0000000000ff"],"next_cfg":1,"cur_cfg":1}]}]}`
	honestWrite = `{"id":2,"error":null,"result":[{},{"count":1},{"count":1},{"count":1},{},{}]}`
	busyWrite   = `{"id":2,"error":null,"result":[{"error":"timed out","details":"no"},null,null,null,null,null]}`
)

func TestHostileAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		want   fault.Kind
	}{
		"garbage":         {"\x00\x01\x02", fault.Internal},
		"not a message":   {`[1,2,3]`, fault.Internal},
		"closed":          {"", fault.Unreachable},
		"half":            {honestRead[:300], fault.Unreachable},
		"refused":         {`{"id":1,"result":null,"error":"unknown database"}`, fault.Busy},
		"no result":       {`{"id":1,"result":[],"error":null}`, fault.Internal},
		"null results":    {`{"id":1,"result":[null,null,null,null],"error":null}`, fault.Internal},
		"another's":       {strings.Repeat(`{"id":7,"result":[],"error":null}`, 100), fault.Internal},
		"endless":         {strings.Repeat(" ", 3<<20), fault.Internal},
		"deep":            {`{"id":1,"result":` + strings.Repeat("[", 100_000), fault.Internal},
		"errors":          {`{"id":1,"result":[{"error":"unknown table"}],"error":null}`, fault.Unsupported},
		"no bridge":       {`{"id":1,"result":[{"rows":[]},{"rows":[]},{"rows":[]},{"rows":[]}],"error":null}`, fault.NotFound},
		"set of sets":     {strings.Replace(honestRead, `"tag":5`, `"tag":["set",[["set",[1]]]]`, 1), fault.Internal},
		"two tags":        {strings.Replace(honestRead, `"tag":5`, `"tag":["set",[1,2]]`, 1), fault.Internal},
		"tag of text":     {strings.Replace(honestRead, `"tag":5`, `"tag":"5"`, 1), fault.Internal},
		"null tag":        {strings.Replace(honestRead, `"tag":5`, `"tag":null`, 1), fault.Internal},
		"no uuid":         {strings.Replace(honestRead, `["uuid","00000000-0000-0000-0000-00000000000a"]`, `["uuid"]`, 1), fault.Internal},
		"epoch of text":   {strings.Replace(honestRead, `"3"`, `"three"`, 1), fault.Internal},
		"epoch too large": {strings.Replace(honestRead, `"3"`, `"99999999999999999999"`, 1), fault.Internal},
		"map of triples":  {strings.Replace(honestRead, `["rerack-epoch","3"]`, `["a","b","c"]`, 1), fault.Internal},
		"no daemon row":   {strings.Replace(honestRead, `"next_cfg":1`, `"next_cfg":["set",[]]`, 1), fault.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			drv, err := ovs.New(ovs.Config{Endpoint: hostile(t, time.Minute, []byte(c.answer)), Bridge: "br0", MaxBytes: 1 << 20})
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
	drv, err := ovs.New(ovs.Config{Endpoint: hostile(t, time.Minute, []byte(echo), []byte(honestRead)), Bridge: "br0"})
	if err != nil {
		t.Fatal(err)
	}
	ports, err := drv.Ports(within(t, 20*time.Second))
	if err != nil || len(ports) != 1 || ports[0].Untagged != 5 || ports[0].Epoch != 3 || ports[0].Link != driver.LinkUp {
		t.Fatalf("%+v, %v", ports, err)
	}
}

// FuzzAnswers lets the far end answer anything to each of the first three requests of a change: the driver
// must return, within its limits, and never claim to have set a port that it could not read back.
func FuzzAnswers(f *testing.F) {
	done := strings.Replace(strings.Replace(strings.Replace(honestRead, `"id":1`, `"id":3`, 1), `"3"`, `"4"`, 1), `"tag":5`, `"tag":6`, 1)
	f.Add([]byte(honestRead), []byte(honestWrite), []byte(done))
	f.Add([]byte(honestRead), []byte(busyWrite), []byte(strings.Replace(honestRead, `"id":1`, `"id":3`, 1)))
	f.Add([]byte(honestRead), []byte(`{"id":2,"result":null,"error":"down"}`), []byte{})
	f.Add([]byte(`{"id":"echo","method":"echo","params":[]}`), []byte(honestRead), []byte(honestWrite))
	f.Add([]byte(`{"id":1,"result":[{"rows":[{}]},{"rows":[{}]},{},{}]}`), []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, first, second, third []byte) {
		drv, err := ovs.New(ovs.Config{Endpoint: hostile(t, 10*time.Millisecond, first, second, third), Bridge: "br0", MaxBytes: 1 << 16, Settle: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		res, err := drv.Apply(ctx, driver.Change{Owner: "fuzz", Settings: []driver.Setting{{Port: "p1", Untagged: 6, Epoch: 4}}})
		if err == nil && (len(res.After) != 1 || res.After[0].Untagged != 6 || res.After[0].Epoch != 4) {
			t.Fatalf("claims success with %+v", res)
		}
	})
}

// FuzzPorts is the same for what a port's row may hold.
func FuzzPorts(f *testing.F) {
	for _, tag := range []string{`5`, `["set",[]]`, `["set",[4094]]`, `-1`, `1e99`, `""`, `{}`} {
		f.Add(tag, `["set",[1,2,3]]`, `["map",[["a","b"]]]`)
	}
	f.Fuzz(func(t *testing.T, tag, trunks, ids string) {
		answer := strings.Replace(honestRead, `"tag":5,"trunks":["set",[]]`, `"tag":`+tag+`,"trunks":`+trunks, 1)
		answer = strings.Replace(answer, `["map",[["rerack-epoch","3"]]]`, ids, 1)
		drv, err := ovs.New(ovs.Config{Endpoint: hostile(t, 10*time.Millisecond, []byte(answer)), Bridge: "br0", MaxBytes: 1 << 16, Settle: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		ports, err := drv.Ports(ctx)
		if err == nil && len(ports) > 1 {
			t.Fatalf("the bridge has one port, %+v were read", ports)
		}
	})
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
