package consul_test

import (
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/store/consul"
	"rerack.dev/rerack/orchestrator/store/consul/consultest"
)

// patience bounds every wait for what must come.
const patience = 60 * time.Second

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// client talks to Consul behind the store's back.
func client(t *testing.T, address, token string) *api.Client {
	t.Helper()
	c, err := api.NewClient(&api.Config{Address: address, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func wantKind(t *testing.T, what string, err error, kind fault.Kind) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Errorf("%s = %v (%v), want fault.%v", what, err, fault.KindOf(err), kind)
	}
}

func TestNobodyAnswers(t *testing.T) {
	dead := httptest.NewServer(http.NotFoundHandler())
	address := dead.Listener.Addr().String()
	_, err := consul.Open(bounded(t), consul.Config{Address: address})
	wantKind(t, "Open at a web server that is not Consul", err, fault.Unsupported)
	dead.Close()
	_, err = consul.Open(bounded(t), consul.Config{Address: address})
	wantKind(t, "Open where nothing listens", err, fault.Unreachable)
	_, err = consul.Open(bounded(t), consul.Config{Address: "nowhere"})
	wantKind(t, "Open without a port", err, fault.Invalid)
}

func TestServerDies(t *testing.T) {
	server := consultest.Start(t)
	s := open(t, consul.Config{Address: server.Address})
	if err := s.Txn(bounded(t), store.Put("a", nil)); err != nil {
		t.Fatal(err)
	}
	seen, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		ended <- s.Watch(t.Context(), "", 0, func(store.Batch) error { seen <- struct{}{}; return nil })
	}()
	<-seen
	server.Stop()
	err := <-ended
	if k := fault.KindOf(err); k != fault.Unreachable && k != fault.Timeout {
		t.Errorf("Watch of a server that died = %v, want fault.Unreachable or Timeout", err)
	}
	_, err = s.Get(bounded(t), "a")
	wantKind(t, "Get", err, fault.Unreachable)
	_, _, err = s.List(bounded(t), "")
	wantKind(t, "List", err, fault.Unreachable)
	wantKind(t, "Txn", s.Txn(bounded(t), store.Put("a", nil)), fault.Unreachable)
	_, err = s.Acquire(bounded(t), "x", options("a"))
	wantKind(t, "Acquire", err, fault.Unreachable)
}

// TestLostReply has Consul apply a transaction whose answer never arrives.
func TestLostReply(t *testing.T) {
	server := consultest.Start(t)
	p := newProxy(t, server.Address)
	direct := open(t, consul.Config{Address: server.Address})
	s := open(t, consul.Config{Address: p.address})
	p.set(func(p *proxy) { p.mute = true })

	ctx, cancel := context.WithCancel(bounded(t))
	applied := make(chan error, 1)
	go func() {
		stop := errors.New("seen")
		err := direct.Watch(bounded(t), "a", 0, func(b store.Batch) error {
			if len(b.Changes) > 0 {
				return stop
			}
			return nil
		})
		cancel() // the writer waits in vain until here
		if !errors.Is(err, stop) {
			applied <- err
		}
		close(applied)
	}()
	err := s.Txn(ctx, store.Put("a", []byte("1")))
	wantKind(t, "Txn without an answer", err, fault.Timeout)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Txn = %v, want the cause to be the context", err)
	}
	if err := <-applied; err != nil {
		t.Fatal(err)
	}
	p.dropConnections()
	wantKind(t, "Txn on a connection that breaks", func() error {
		done := make(chan error, 1)
		go func() { done <- s.Txn(bounded(t), store.Put("b", []byte("1"))) }()
		for {
			if _, err := direct.Get(bounded(t), "b"); err == nil {
				p.dropConnections()
				return <-done
			}
		}
	}(), fault.Timeout)
}

func TestAccess(t *testing.T) {
	const root = "5c1e0b57-9a4b-4a5e-8f39-0f4f3a5d7e11"
	server := consultest.StartSecured(t, root)
	admin := client(t, server.Address, root)
	ctx := bounded(t)
	token := func(name, rules string) string {
		t.Helper()
		if _, _, err := admin.ACL().PolicyCreate(&api.ACLPolicy{Name: name, Rules: rules}, (&api.WriteOptions{}).WithContext(ctx)); err != nil {
			t.Fatal(err)
		}
		tok, _, err := admin.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLTokenPolicyLink{{Name: name}}}, (&api.WriteOptions{}).WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		return tok.SecretID
	}
	full := token("full", `key_prefix "rerack/" { policy = "write" } session_prefix "" { policy = "write" }`)
	reader := token("reader", `key_prefix "rerack/" { policy = "read" }`)

	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(full+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, consul.Config{Address: server.Address, TokenFile: file})
	if err := s.Txn(ctx, store.Put("a", nil)); err != nil {
		t.Errorf("Txn with a token that may = %v", err)
	}
	if _, err := s.Acquire(ctx, "x", options("a")); err != nil {
		t.Errorf("Acquire with a token that may = %v", err)
	}

	_, err := consul.Open(ctx, consul.Config{Address: server.Address, Token: "00000000-1111-2222-3333-444444444444"})
	wantKind(t, "Open with an unknown token", err, fault.Unauthorized)

	ro := open(t, consul.Config{Address: server.Address, Token: reader})
	if _, err := ro.Get(ctx, "a"); err != nil {
		t.Errorf("Get with a reader's token = %v", err)
	}
	_, acquireErr := ro.Acquire(ctx, "y", options("a"))
	for what, err := range map[string]error{
		"Txn":       ro.Txn(ctx, store.Put("a", nil)),
		"large Txn": ro.Txn(ctx, store.Put("a", make([]byte, store.MaxValue))),
		"Acquire":   acquireErr,
	} {
		wantKind(t, what+" with a reader's token", err, fault.Unauthorized)
		if err != nil && strings.Contains(err.Error(), reader) {
			t.Errorf("%s shows the token: %v", what, err)
		}
	}
}

func TestTLS(t *testing.T) {
	server := consultest.Start(t)
	target := &url.URL{Scheme: "http", Host: server.Address}
	front := httptest.NewUnstartedServer(httputil.NewSingleHostReverseProxy(target))
	front.Config.ErrorLog = log.New(io.Discard, "", 0) // of the handshake that is to fail
	front.StartTLS()
	defer front.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw})
	if err := os.WriteFile(ca, block, 0o600); err != nil {
		t.Fatal(err)
	}
	c := consul.Config{Address: front.Listener.Addr().String(), Scheme: "https", CAFile: ca}
	if err := open(t, c).Txn(bounded(t), store.Put("a", nil)); err != nil {
		t.Errorf("Txn over TLS = %v", err)
	}
	c.CAFile = ""
	_, err := consul.Open(bounded(t), c)
	wantKind(t, "Open with a certificate of an unknown authority", err, fault.Unreachable)
	if err == nil || !strings.Contains(err.Error(), "CAFile") {
		t.Errorf("Open = %v, want a hint at CAFile", err)
	}
}
