package agent_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"rerack.dev/rerack/hypervisor/agent"
	"rerack.dev/rerack/hypervisor/hypersim"
	"rerack.dev/rerack/hypervisor/hypervisortest"
	"rerack.dev/rerack/internal/fault"
)

// TestHostileRequests is what a caller with the right certificate and the wrong program may send.
func TestHostileRequests(t *testing.T) {
	s := hypervisortest.NewSim(t)
	c := s.Serve(t)
	spec := hypervisortest.Spec("db1", 1, 5)
	must(t, dial(t, c).Define(t.Context(), spec))
	raw, err := json.Marshal(spec)
	must(t, err)
	good := string(raw)
	other := strings.ReplaceAll(strings.ReplaceAll(good, "db1", "db2"), `"epoch":5`, `"epoch":6`)
	before := s.Counters()
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{c.Certificate}}} //nolint:gosec // a test's
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr, Timeout: 20 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for _, r := range []struct {
		method, path, body string
		want               int
	}{
		{"PUT", "/v1/vms/db2", "", 400},
		{"PUT", "/v1/vms/db2", "null", 400},
		{"PUT", "/v1/vms/db2", "[]", 400},
		{"PUT", "/v1/vms/db2", good, 400}, // another name in the body
		{"PUT", "/v1/vms/db2", other + other, 400},
		{"PUT", "/v1/vms/db2", other + "x", 400},
		{"PUT", "/v1/vms/db2", other[:len(other)-1], 400},
		{"PUT", "/v1/vms/db2", strings.Replace(other, `{`, `{"role":"admin",`, 1), 400},
		{"PUT", "/v1/vms/db2", strings.Replace(other, `"vlan"`, `"trunk":true,"vlan"`, 1), 400},
		{"PUT", "/v1/vms/db2", strings.Replace(other, `"epoch":6`, `"epoch":-6`, 1), 400},
		{"PUT", "/v1/vms/db2", strings.Replace(other, `"epoch":6`, `"epoch":18446744073709551616`, 1), 400},
		{"PUT", "/v1/vms/db2", strings.Replace(other, `"cpus":1`, `"cpus":1e99`, 1), 400},
		{"PUT", "/v1/vms/db2", strings.Replace(other, `"memoryMiB":512`, `"memoryMiB":9223372036854775807`, 1), 400},
		{"PUT", "/v1/vms/db2", strings.Repeat(" ", 2<<20) + other, 400},
		{"PUT", "/v1/vms/db2", strings.Replace(other, `"db2"`, `"`+strings.Repeat("db2", 1<<20)+`"`, 1), 400},
		{"PUT", "/v1/vms/db2", strings.Repeat("[", 1<<19), 400},
		{"PUT", "/v1/vms/..%2fdb2", strings.ReplaceAll(other, "db2", "../db2"), 400},
		{"POST", "/v1/vms/db1/start", "", 400},
		{"POST", "/v1/vms/db1/start?epoch=", "", 400},
		{"POST", "/v1/vms/db1/start?epoch=0", "", 400},
		{"POST", "/v1/vms/db1/start?epoch=-5", "", 400},
		{"POST", "/v1/vms/db1/start?epoch=5&epoch=5", "", 400},
		{"POST", "/v1/vms/db1/start?epoch=5;x", "", 400},
		{"POST", "/v1/vms/db1/start?Epoch=5", "", 400},
		{"POST", "/v1/vms/db1/start?epoch=18446744073709551616", "", 400},
		{"POST", "/v1/vms/db1/start?epoch=4", "", 409},
		{"POST", "/v1/vms/db1/start?epoch=6", "", 409},
		{"POST", "/v1/vms/db2/start?epoch=6", "", 404},
		{"POST", "/v1/vms/%2e%2e/stop?epoch=6", "", 400},
		{"POST", "/v1/vms//stop?epoch=6", "", 307},
		{"POST", "/v1/vms/db1/restart?epoch=6", "", 404},
		{"GET", "/v1/vms/db1/start?epoch=5", "", 405},
		{"GET", "/v1/drain", "", 405},
		{"DELETE", "/v1/vms", "", 405},
		{"GET", "/", "", 404},
		{"GET", "/v2/vms", "", 404},
		{"GET", "/v1/vms?" + strings.Repeat("x", 64<<10), "", 431},
	} {
		req, err := http.NewRequestWithContext(t.Context(), r.method, c.URL+r.path, strings.NewReader(r.body))
		must(t, err)
		resp, err := client.Do(req)
		if err != nil {
			t.Errorf("%s %.60s %.80s: %v", r.method, r.path, r.body, err)
			continue
		}
		answer, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != r.want {
			t.Errorf("%s %.60s %.80s: HTTP %d %s, want %d", r.method, r.path, r.body, resp.StatusCode, answer, r.want)
		}
	}
	if after := s.Counters(); after.Changes != before.Changes || after.Starts != 0 {
		t.Errorf("something was changed: %+v, then %+v", before, after)
	}
	must(t, dial(t, c).Start(t.Context(), "db1", 5))
}

// TestHostileAnswers is what comes back from an agent that is broken or taken over: an error each time,
// and never a list.
func TestHostileAnswers(t *testing.T) {
	s := hypervisortest.NewSim(t)
	c := s.Serve(t)
	var lured atomic.Int32
	trap := s.Impostor(t, func(w http.ResponseWriter, _ *http.Request) { lured.Add(1); fmt.Fprint(w, "[]") })
	say := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body)
		}
	}
	redirect := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, trap+r.URL.Path, code) }
	}
	for what, r := range map[string]struct {
		answer http.HandlerFunc
		want   fault.Kind
	}{
		"empty":              {say(200, ""), fault.Internal},
		"null":               {say(200, "null"), fault.Internal},
		"spaced null":        {say(200, " null \n"), fault.Internal},
		"a number":           {say(200, "7"), fault.Internal},
		"a page":             {say(200, "<html>welcome</html>"), fault.Internal},
		"two lists":          {say(200, "[][]"), fault.Internal},
		"half":               {say(200, `[{"name":"db1"`), fault.Internal},
		"deep":               {say(200, strings.Repeat("[", 1<<20)), fault.Internal},
		"endless":            {say(200, "["+strings.Repeat(" ", 17<<20)+"]"), fault.Internal},
		"no content":         {say(204, ""), fault.Internal},
		"partial":            {say(206, "[]"), fault.Internal},
		"found":              {redirect(302), fault.Internal},
		"temporary":          {redirect(307), fault.Internal},
		"permanent":          {redirect(308), fault.Internal},
		"a proxy's page":     {say(502, "<html>bad gateway</html>"), fault.Internal},
		"an error as list":   {say(500, "[]"), fault.Internal},
		"an unknown kind":    {say(409, `{"kind":"splendid"}`), fault.Internal},
		"no kind":            {say(409, `{"detail":"x"}`), fault.Internal},
		"a problem":          {say(409, `{"kind":"stale","detail":"epoch 3"}`), fault.Stale},
		"a problem with 200": {say(200, `{"kind":"stale","detail":"epoch 3"}`), fault.Internal},
		"headers": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", strings.Repeat("x", 64<<10))
			_, _ = io.WriteString(w, "[]")
		}, fault.Unreachable},
		"cut off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "[]")
		}, fault.Unreachable},
		"silence": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, fault.Timeout},
		"silence in the middle": {func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "[")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, fault.Timeout},
		"abort": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, fault.Unreachable},
	} {
		t.Run(what, func(t *testing.T) {
			bad := c
			bad.URL = s.Impostor(t, r.answer)
			if r.want == fault.Timeout {
				bad.Timeout = 300 * time.Millisecond
			}
			d := dial(t, bad)
			if vms, err := d.VMs(t.Context()); !fault.Is(err, r.want) || vms != nil {
				t.Errorf("VMs: %v, %v, want kind %s", vms, err, r.want)
			}
			room, err := d.Capacity(t.Context())
			if what == "a problem with 200" { // it has no field that capacity has: whoever trusts it sees nonsense
				if err != nil || room.CPUs != 0 {
					t.Errorf("capacity: %+v, %v", room, err)
				}
			} else if !fault.Is(err, r.want) || room.CPUs != 0 {
				t.Errorf("capacity: %+v, %v, want kind %s", room, err, r.want)
			}
		})
	}
	if n := lured.Load(); n != 0 {
		t.Errorf("a redirect was followed %d times", n)
	}
}

func TestAnAgentsWordsAreNotBelievedWhole(t *testing.T) {
	s := hypervisortest.NewSim(t)
	c := s.Serve(t)
	c.URL = s.Impostor(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusConflict)
		_ = json.NewEncoder(w).Encode(map[string]string{"kind": "conflict", "detail": "no\n\x1b[2Jlevel=ERROR\x00" + strings.Repeat("x", 1<<16)})
	})
	err := dial(t, c).Stop(t.Context(), "db1", 5)
	if !fault.Is(err, fault.Conflict) || len(err.Error()) > 4<<10 || strings.ContainsAny(err.Error(), "\n\x1b\x00") {
		t.Errorf("%d bytes: %.200q", len(err.Error()), err)
	}
}

func TestNobodyListens(t *testing.T) {
	s := hypervisortest.NewSim(t)
	c := s.Serve(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	c.URL = "https://" + l.Addr().String()
	must(t, l.Close())
	if vms, err := dial(t, c).VMs(t.Context()); !fault.Is(err, fault.Unreachable) || vms != nil {
		t.Errorf("%v, %v", vms, err)
	}
}

// A host that hangs costs a caller its deadline and no more, and its agent ends all the same.
func TestAHangingHost(t *testing.T) {
	s := hypervisortest.NewSim(t)
	c := s.Serve(t)
	c.Timeout = 200 * time.Millisecond
	d := dial(t, c)
	must(t, d.Define(t.Context(), hypervisortest.Spec("db1", 1, 5)))
	s.SetFaults(func(f *hypersim.Faults) { f.Hang = true })
	if _, err := d.VMs(t.Context()); !fault.Is(err, fault.Timeout) {
		t.Errorf("list: %v", err)
	}
	if err := d.Start(t.Context(), "db1", 5); !fault.Is(err, fault.Timeout) {
		t.Errorf("start: %v", err)
	}
	c.Timeout = time.Minute
	patient := dial(t, c)
	calls := s.Counters().Calls
	done := make(chan error, 1)
	go func() { _, err := patient.VMs(t.Context()); done <- err }()
	for s.Counters().Calls == calls {
		time.Sleep(time.Millisecond)
	}
	s.SetFaults(func(f *hypersim.Faults) { f.Hang = false })
	if err := <-done; err != nil {
		t.Errorf("after it came back: %v", err)
	}
	if n := s.Running(); len(n) != 0 {
		t.Errorf("a start that its caller had given up was made: %v", n)
	}
}

// An agent ends with its machine, whatever hangs there: this test would not end either.
func TestAHangingHostsAgentEnds(t *testing.T) {
	done := make(chan error, 1)
	t.Cleanup(func() { // runs after the agent has ended
		if err := <-done; err == nil || !fault.KindOf(err).Retryable() {
			t.Errorf("the call that was under way: %v", err)
		}
	})
	s := hypervisortest.NewSim(t)
	c := s.Serve(t)
	c.Timeout = time.Hour
	s.SetFaults(func(f *hypersim.Faults) { f.Hang = true })
	d, err := agent.Dial(c)
	must(t, err)
	go func() { _, err := d.VMs(context.WithoutCancel(t.Context())); done <- err }()
	for s.Counters().Calls == 0 {
		time.Sleep(time.Millisecond)
	}
}

func TestAnEmptyHostHasAList(t *testing.T) {
	s := hypervisortest.NewSim(t)
	d := dial(t, s.Serve(t))
	s.SetFaults(func(f *hypersim.Faults) { f.Lie = hypersim.Nothing }) // as nil
	if vms, err := d.VMs(t.Context()); err != nil || vms == nil || len(vms) != 0 {
		t.Errorf("%v, %v", vms, err)
	}
}

func TestServerConfig(t *testing.T) {
	s := hypervisortest.NewSim(t)
	s.Serve(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	for key, spoil := range map[string]func(*agent.ServerConfig){
		"Listener":    func(c *agent.ServerConfig) { c.Listener = nil },
		"Certificate": func(c *agent.ServerConfig) { c.Certificate = tls.Certificate{} },
		"CA":          func(c *agent.ServerConfig) { c.CA = nil },
		"Client":      func(c *agent.ServerConfig) { c.Client = "" },
		"Host":        func(c *agent.ServerConfig) { c.Host = nil },
	} {
		c := agent.ServerConfig{Listener: l, Certificate: hypervisortest.AgentCertificate(t, s.CA, "b01", 3), CA: s.CA.Pool(), Client: "rerack", Host: s.Host}
		spoil(&c)
		if err := agent.Serve(t.Context(), c); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
}
