package hostd_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"rerack.dev/rerack/hypervisor/agent"
	"rerack.dev/rerack/hypervisor/hostd"
	"rerack.dev/rerack/hypervisor/hypersim"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/pki"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// plane is a boot plane of one machine in one boot.
type plane struct {
	ca      *pki.CA
	url     string
	healthy chan struct{}
	refuse  string // the call that is refused
	spoil   func(certificate, ca []byte) ([]byte, []byte)
}

func (p *plane) refused(call string) error {
	if p.refuse == call {
		return fault.New(fault.Unauthorized, "not this one")
	}
	return nil
}

func (p *plane) PhoneHome(_ context.Context, url string) error {
	p.url = url
	return p.refused("phone home")
}

func (p *plane) Join(_ context.Context, csr []byte) (certificate, ca []byte, err error) {
	if err := p.refused("join"); err != nil {
		return nil, nil, err
	}
	certificate, err = p.ca.SignAgent(csr, "b01", 3)
	ca = p.ca.PEM()
	if p.spoil != nil {
		certificate, ca = p.spoil(certificate, ca)
	}
	return certificate, ca, err
}

func (p *plane) Healthy(context.Context) error {
	if p.url == "" {
		return errors.New("healthy before it phoned home")
	}
	close(p.healthy)
	return p.refused("healthy")
}

func setup(t *testing.T) (*plane, hostd.Config) {
	t.Helper()
	ca, err := pki.Open(t.TempDir())
	must(t, err)
	h, err := hypersim.New(hypersim.Config{Name: "b01", CPUs: 2, MemoryMiB: 1024})
	must(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	p := &plane{ca: ca, healthy: make(chan struct{})}
	return p, hostd.Config{Home: p, Listener: l, URL: "https://" + l.Addr().String(), Client: "rerack", Host: h}
}

func TestAHostServesOnceItHasJoined(t *testing.T) {
	p, c := setup(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- hostd.Run(ctx, c) }()
	<-p.healthy
	caller, err := p.ca.Client("rerack")
	must(t, err)
	a, err := agent.Dial(agent.ClientConfig{URL: p.url, Certificate: caller, CA: p.ca.Pool(), Machine: "b01", Epoch: 3})
	must(t, err)
	room, err := a.Capacity(t.Context())
	if err != nil || room.CPUs != 2 {
		t.Errorf("%+v, %v", room, err)
	}
	must(t, a.Close())
	cancel()
	must(t, <-done)
	if _, err := net.Dial("tcp", c.Listener.Addr().String()); err == nil {
		t.Error("it listens when it has ended")
	}
}

func TestAHostThatIsRefusedServesNobody(t *testing.T) {
	_, other, err := pki.NewRequest()
	must(t, err)
	for what, change := range map[string]func(*plane){
		"phone home":     func(p *plane) { p.refuse = "phone home" },
		"join":           func(p *plane) { p.refuse = "join" },
		"healthy":        func(p *plane) { p.refuse = "healthy" },
		"no certificate": func(p *plane) { p.spoil = func(_, ca []byte) ([]byte, []byte) { return nil, ca } },
		"no authority":   func(p *plane) { p.spoil = func(c, _ []byte) ([]byte, []byte) { return c, []byte("x") } },
		"another's certificate": func(p *plane) {
			p.spoil = func(_, ca []byte) ([]byte, []byte) {
				c, err := p.ca.SignAgent(other, "b02", 3)
				must(t, err)
				return c, ca
			}
		},
	} {
		p, c := setup(t)
		change(p)
		if err := hostd.Run(t.Context(), c); err == nil {
			t.Errorf("%s: it runs", what)
		}
		if _, err := net.Dial("tcp", c.Listener.Addr().String()); err == nil {
			t.Errorf("%s: it listens", what)
		}
	}
}

func TestConfigNamesTheKey(t *testing.T) {
	for key, spoil := range map[string]func(*hostd.Config){"Home": func(c *hostd.Config) { c.Home = nil }, "URL": func(c *hostd.Config) { c.URL = "" },
		"Client": func(c *hostd.Config) { c.Client = "" }, "Host": func(c *hostd.Config) { c.Host = nil }} {
		_, c := setup(t)
		spoil(&c)
		if err := hostd.Run(t.Context(), c); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
		_ = c.Listener.Close()
	}
}
