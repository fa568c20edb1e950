package lab

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
)

func TestProbeProxyLetsInWhatTheWorldLetsIn(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var up atomic.Bool
	p := startProbeProxy(ln, func(to netip.AddrPort) (service, error) {
		switch {
		case to.Addr() != netip.MustParseAddr("10.1.2.3") || !up.Load():
			return service{}, fault.New(fault.Unreachable, "nobody there")
		case to.Port() != 8080:
			return service{}, errRefused
		}
		return service{Workload: "db1", Epoch: 4, Machine: "a01"}, nil
	}, slog.New(slog.DiscardHandler))
	defer func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	}()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		Proxy: http.ProxyURL(&url.URL{Scheme: "socks5", Host: ln.Addr().String()})}}
	defer client.CloseIdleConnections()
	get := func(at string) (service, error) {
		resp, err := client.Get("http://" + at)
		if err != nil {
			return service{}, err
		}
		defer resp.Body.Close()
		var s service
		return s, json.NewDecoder(resp.Body).Decode(&s)
	}
	if _, err := get("10.1.2.3:8080/"); err == nil {
		t.Error("a workload that is down answered")
	}
	up.Store(true)
	if s, err := get("10.1.2.3:8080/health"); err != nil || s.Workload != "db1" || s.Epoch != 4 {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := get("10.1.2.3:22/"); err == nil {
		t.Error("a port nobody listens on answered")
	}
	up.Store(false) // the kept-alive connection must not answer for the dead
	if _, err := get("10.1.2.3:8080/"); err == nil {
		t.Error("a workload that went down still answers")
	}
}

// halves is a client that has sent all it will ever send.
type halves struct {
	in  *bytes.Reader
	out bytes.Buffer
}

func (h *halves) Read(b []byte) (int, error)  { return h.in.Read(b) }
func (h *halves) Write(b []byte) (int, error) { return h.out.Write(b) }

func TestReadSocks(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		to   string
		code byte
	}{
		"IPv4":         {"\x05\x01\x00\x05\x01\x00\x01\x0a\x01\x02\x03\x1f\x90", "10.1.2.3:8080", socksOK},
		"name":         {"\x05\x01\x00\x05\x01\x00\x03\x0810.1.2.3\x00\x50", "10.1.2.3:80", socksOK},
		"real name":    {"\x05\x01\x00\x05\x01\x00\x03\x03foo\x00\x50", "", socksUnreachable},
		"bind":         {"\x05\x01\x00\x05\x02\x00\x01\x0a\x01\x02\x03\x1f\x90", "10.1.2.3:8080", socksBadCommand},
		"address type": {"\x05\x01\x00\x05\x01\x00\x09", "", socksBadAddress},
		"SOCKS4":       {"\x04\x01\x00\x50\x0a\x01\x02\x03\x00", "", socksNoMethod},
		"wants login":  {"\x05\x01\x02", "", socksNoMethod},
		"cut short":    {"\x05\x01\x00\x05\x01\x00\x01\x0a", "", socksNoMethod},
	} {
		to, code, err := readSocks(&halves{in: bytes.NewReader([]byte(c.in))})
		if code != c.code || (err == nil) != (c.code == socksOK) || c.code == socksOK && to.String() != c.to {
			t.Errorf("%s: %v, code %d, %v", name, to, code, err)
		}
	}
}

func FuzzReadSocks(f *testing.F) {
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x01\x0a\x01\x02\x03\x1f\x90"))
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x03\x0810.1.2.3\x00\x50"))
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x50"))
	f.Fuzz(func(t *testing.T, in []byte) {
		h := &halves{in: bytes.NewReader(in)}
		to, code, err := readSocks(io.ReadWriter(h))
		if err == nil && (code != socksOK || !to.Addr().IsValid()) {
			t.Errorf("no error with code %d and %v", code, to)
		}
	})
}
