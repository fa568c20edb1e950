package redfish_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/bmcsim"
	"rerack.dev/rerack/bmc/bmctest"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/bmc/redfish"
	"rerack.dev/rerack/internal/fault"
)

func ctxFor(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// open logs in to a healthy simulator.
func open(t *testing.T, profile bmcsim.Profile) (*bmctest.Sim, driver.BMC) {
	t.Helper()
	s := bmctest.NewSim(t, profile, true, redfish.Opener{}.Open)
	d, err := s.Open(ctxFor(t), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.BMC.SetFaults(func(f *bmcsim.Faults) { *f = bmcsim.Faults{} })
		if err := d.Close(ctxFor(t)); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s, d
}

func TestRedirectToAnotherHostCarriesNothing(t *testing.T) {
	var hits atomic.Int64
	other := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	defer other.Close()
	s, d := open(t, bmcsim.Generic())
	s.BMC.SetFaults(func(f *bmcsim.Faults) { f.RedirectTo = other.URL })
	_, err := d.Power(ctxFor(t))
	if !fault.Is(err, fault.Unsafe) {
		t.Errorf("%v is %s, want unsafe", err, fault.KindOf(err))
	}
	if hits.Load() != 0 {
		t.Error("the other host was asked")
	}
}

func TestHugeAnswerIsCut(t *testing.T) {
	s, d := open(t, bmcsim.Generic())
	s.BMC.SetFaults(func(f *bmcsim.Faults) { f.Flood = 64 << 20 })
	r, err := d.Power(ctxFor(t))
	if err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("%v, want a complaint about the length", err)
	}
	if r.State != driver.PowerUnknown {
		t.Errorf("state %s out of a cut answer", r.State)
	}
}

func TestLoopingLinksEnd(t *testing.T) {
	s, d := open(t, bmcsim.Generic())
	s.BMC.SetFaults(func(f *bmcsim.Faults) { f.LoopLinks = true })
	before := s.BMC.Count("get")
	_, err := d.Inventory(ctxFor(t))
	if err == nil || !strings.Contains(err.Error(), "too many requests") {
		t.Errorf("%v, want too many requests", err)
	}
	if n := s.BMC.Count("get") - before; n > 256 {
		t.Errorf("%d requests", n)
	}
}

func TestTrust(t *testing.T) {
	s := bmctest.NewSim(t, bmcsim.Generic(), true, nil)
	good := s.BMC.Endpoint(bmc.Redfish, "")
	pin, err := s.BMC.Fingerprint()
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := bmcsim.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*bmc.Endpoint)
		ok     bool
	}{
		"right CA":                    {func(*bmc.Endpoint) {}, true},
		"system CAs":                  {func(e *bmc.Endpoint) { e.CA = "" }, false},
		"another CA":                  {func(e *bmc.Endpoint) { e.CA = foreign.PEM() }, false},
		"pinned":                      {func(e *bmc.Endpoint) { e.CA, e.Fingerprint = "", pin }, true},
		"another pin":                 {func(e *bmc.Endpoint) { e.Fingerprint = strings.Repeat("00", 32) }, false},
		"name not in the certificate": {func(e *bmc.Endpoint) { e.Address = fmt.Sprintf("localhost:%d", s.BMC.Port()) }, false},
		"name not in it, but pinned":  {func(e *bmc.Endpoint) { e.Address, e.Fingerprint = fmt.Sprintf("localhost:%d", s.BMC.Port()), pin }, true},
	} {
		ep := good
		c.change(&ep)
		before := s.BMC.Count("login")
		d, err := redfish.Opener{}.Open(ctxFor(t), ep, bmctest.SimCredential())
		switch {
		case c.ok && err != nil:
			t.Errorf("%s: %v", name, err)
		case !c.ok && !fault.Is(err, fault.Unsafe):
			t.Errorf("%s: %v is %s, want unsafe", name, err, fault.KindOf(err))
		case !c.ok && s.BMC.Count("login") != before:
			t.Errorf("%s: credentials were sent", name)
		}
		if d != nil {
			if err := d.Close(ctxFor(t)); err != nil {
				t.Error(err)
			}
		}
	}
}

// H17: the BMC's clock is wrong, so its certificate is not valid yet.
func TestClockSkew(t *testing.T) {
	ca, err := bmcsim.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	b, err := bmcsim.New(bmcsim.Config{Backend: bmcsim.NewMachine(bmctest.SimIdentity()), Users: []bmc.Credential{bmctest.SimCredential()},
		CertNotBefore: time.Now().Add(2 * time.Hour)}, ca)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ep := b.Endpoint(bmc.Redfish, "")
	for skew, want := range map[time.Duration]bool{0: false, time.Hour: false, 3 * time.Hour: true} {
		err := redfish.Opener{Config: redfish.Config{ClockSkew: skew}}.Probe(ctxFor(t), ep)
		if want && err != nil {
			t.Errorf("skew %s: %v", skew, err)
		}
		if !want && !fault.Is(err, fault.Unsafe) {
			t.Errorf("skew %s: %v, want unsafe", skew, err)
		}
	}
	foreign, err := bmcsim.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	ep.CA = foreign.PEM()
	if err := (redfish.Opener{Config: redfish.Config{ClockSkew: 3 * time.Hour}}).Probe(ctxFor(t), ep); !fault.Is(err, fault.Unsafe) {
		t.Errorf("tolerating the clock let a foreign CA in: %v", err)
	}
}

func TestFullSessionTableIsBusy(t *testing.T) {
	p := bmcsim.Generic()
	p.MaxSessions = 1
	s, _ := open(t, p)
	_, err := s.Open(ctxFor(t), false)
	if !fault.Is(err, fault.Busy) {
		t.Errorf("%v is %s, want busy", err, fault.KindOf(err))
	}
}

func TestFailedOpenLeavesNoSession(t *testing.T) {
	s := bmctest.NewSim(t, bmcsim.Generic(), true, redfish.Opener{Config: redfish.Config{MaxRequests: 3}}.Open)
	if _, err := s.Open(ctxFor(t), false); err == nil {
		t.Fatal("opened with three requests")
	}
	if n := s.BMC.Sessions(); n != 0 {
		t.Errorf("%d sessions left", n)
	}
}

// A power read is one GET of one resource on a connection that is held.
func TestPowerReadIsOneRequest(t *testing.T) {
	s, d := open(t, bmcsim.Generic())
	gets, conns := s.BMC.Count("get"), s.BMC.Count("connect")
	for range 10 {
		if _, err := d.Power(ctxFor(t)); err != nil {
			t.Fatal(err)
		}
	}
	if g, c := s.BMC.Count("get")-gets, s.BMC.Count("connect")-conns; g != 10 || c != 0 {
		t.Errorf("10 reads made %d requests and %d connections", g, c)
	}
}

// canned is a Redfish service that answers what it is told.
func canned(t testing.TB, answers map[string]string) (*httptest.Server, redfish.Config) {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			w.Header().Set("X-Auth-Token", "t")
			w.Header().Set("Location", "/redfish/v1/SessionService/Sessions/1")
			w.WriteHeader(http.StatusCreated)
			return
		}
		body, ok := answers[strings.TrimSuffix(r.URL.Path, "/")]
		if !ok && r.Method == http.MethodGet {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = w.Write([]byte(body)) // a client that has seen enough hangs up
	}))
	srv.TLS = &tls.Config{}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv, redfish.Config{Address: srv.Listener.Addr().(*net.TCPAddr).String(), User: "u", Password: bmc.NewSecret("p"), Fingerprint: bmctest.Fingerprint(srv.Certificate().Raw), MaxBody: 64 << 10, MaxRequests: 64}
}

const (
	rootJSON    = `{"Systems":{"@odata.id":"/redfish/v1/Systems"},"Links":{"Sessions":{"@odata.id":"/redfish/v1/SessionService/Sessions"}}}`
	systemsJSON = `{"Members":[{"@odata.id":"/redfish/v1/Systems/1"}]}`
)

func TestLinksToOtherHostsAreRefused(t *testing.T) {
	for _, link := range []string{"https://169.254.169.254/redfish/v1/Systems/1", "//evil.example/redfish/v1/Systems/1", "http://{self}/redfish/v1/Systems/1", "file:///etc/shadow", "/etc/shadow"} {
		srv, _ := canned(t, nil)
		link = strings.ReplaceAll(link, "{self}", srv.Listener.Addr().String())
		_, cfg := canned(t, map[string]string{"/redfish/v1": rootJSON, "/redfish/v1/Systems": fmt.Sprintf(`{"Members":[{"@odata.id":%q}]}`, link)})
		if d, err := redfish.Open(ctxFor(t), cfg); err == nil {
			t.Errorf("%s was followed: %v", link, d.Close(ctxFor(t)))
		}
	}
}

func TestSeveralSystemsNeedAnIdentity(t *testing.T) {
	answers := map[string]string{"/redfish/v1": rootJSON,
		"/redfish/v1/Systems":   `{"Members":[{"@odata.id":"/redfish/v1/Systems/1"},{"@odata.id":"/redfish/v1/Systems/2"}]}`,
		"/redfish/v1/Systems/1": `{"UUID":"aaaa","SerialNumber":"A","PowerState":"On"}`,
		"/redfish/v1/Systems/2": `{"UUID":"bbbb","SerialNumber":"B","PowerState":"Off"}`}
	_, cfg := canned(t, answers)
	if _, err := redfish.Open(ctxFor(t), cfg); !fault.Is(err, fault.NotFound) {
		t.Errorf("no identity: %v, want not found", err)
	}
	cfg.Serial = "B"
	d, err := redfish.Open(ctxFor(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := d.Power(ctxFor(t)); err != nil || r.State != driver.PowerOff {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestPowerStates(t *testing.T) {
	for body, want := range map[string]driver.PowerState{
		`{"PowerState":"On"}`: driver.PowerOn, `{"PowerState":"Off"}`: driver.PowerOff, `{"PowerState":"PoweringOff"}`: driver.PowerChanging,
		`{"PowerState":"PoweringOn"}`: driver.PowerChanging, `{"PowerState":"Paused"}`: driver.PowerChanging,
		`{"PowerState":"off "}`: driver.PowerChanging, `{"PowerState":null}`: driver.PowerUnknown, `{}`: driver.PowerUnknown,
		`[]`: driver.PowerUnknown, `{"PowerState":"Off"`: driver.PowerUnknown, ``: driver.PowerUnknown, `{"PowerState":{}}`: driver.PowerUnknown,
	} {
		answers := map[string]string{"/redfish/v1": rootJSON, "/redfish/v1/Systems": systemsJSON, "/redfish/v1/Systems/1": `{"PowerState":"On"}`}
		_, cfg := canned(t, answers)
		d, err := redfish.Open(ctxFor(t), cfg)
		if err != nil {
			t.Fatal(err)
		}
		answers["/redfish/v1/Systems/1"] = body // the server is idle between two requests
		r, err := d.Power(ctxFor(t))
		if r.State != want || (err == nil) != (want != driver.PowerUnknown) {
			t.Errorf("%s reads %s, %v; want %s", body, r.State, err, want)
		}
	}
}

// FuzzAnswers gives a driver one hostile answer for everything after the login. It may fail; it may not
// panic, hang, or call a machine off that nobody called off.
func FuzzAnswers(f *testing.F) {
	for _, s := range []string{`{"PowerState":"On"}`, `{"PowerState":"Off","UUID":"x"}`, `{"Members":[{"@odata.id":"/redfish/v1/Systems/1"}],"Members@odata.nextLink":"/redfish/v1/Systems"}`,
		`{"Actions":{"#ComputerSystem.Reset":{"target":"https://evil/","@Redfish.ActionInfo":"/redfish/v1/x"}},"PowerState":"On"}`,
		`{"@Redfish.Settings":{"SettingsObject":{"@odata.id":"/redfish/v1/Systems/1/SD"}},"Boot":{"BootSourceOverrideEnabled":"Once","BootSourceOverrideTarget":"Pxe"}}`,
		`{"Links":{"Chassis":[{"@odata.id":"/redfish/v1/Chassis/1"}]},"NetworkAdapters":{"@odata.id":"/redfish/v1/N"},"Members":[{"@odata.id":"/redfish/v1/F"}],"FibreChannel":{"WWPN":"2000002 5b5"}}`,
		strings.Repeat(`{"a":`, 5000), strings.Repeat("[", 20000), "\x00\xff", `{"PowerState":"\ud800"}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		var hostile atomic.Bool
		srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			path := strings.TrimSuffix(r.URL.Path, "/")
			switch {
			case r.Method == http.MethodPost && strings.HasSuffix(path, "/Sessions"):
				w.Header().Set("X-Auth-Token", "t")
				w.Header().Set("Location", "/redfish/v1/SessionService/Sessions/1")
				w.WriteHeader(http.StatusCreated)
			case hostile.Load():
				_, _ = w.Write([]byte(body))
			case path == "/redfish/v1":
				_, _ = w.Write([]byte(rootJSON))
			case path == "/redfish/v1/Systems":
				_, _ = w.Write([]byte(systemsJSON))
			default:
				_, _ = w.Write([]byte(`{"PowerState":"On"}`))
			}
		}))
		defer srv.Close()
		cfg := redfish.Config{Address: srv.Listener.Addr().String(), Fingerprint: bmctest.Fingerprint(srv.Certificate().Raw), MaxBody: 64 << 10, MaxRequests: 32}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		d, err := redfish.Open(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		hostile.Store(true)
		if r, err := d.Power(ctx); r.State == driver.PowerOff && (err != nil || !strings.Contains(strings.ToLower(body), "power")) {
			t.Errorf("%q reads off, %v", body, err)
		}
		_, _ = d.Boot(ctx)
		_ = d.SetBoot(ctx, driver.BootOverride{Device: driver.BootPXE, Once: true})
		_ = d.SetPower(ctx, driver.Off)
		_ = d.SetPowerRestore(ctx, true)
		_, _ = d.Inventory(ctx)
		_ = d.Close(ctx)
		if ctx.Err() != nil {
			t.Error("a hostile answer made the driver hang")
		}
	})
}

func BenchmarkPowerRead(b *testing.B) {
	s := bmctest.NewSim(b, bmcsim.Generic(), true, redfish.Opener{}.Open)
	d, err := s.Open(context.Background(), false)
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close(context.Background())
	for b.Loop() {
		if _, err := d.Power(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
