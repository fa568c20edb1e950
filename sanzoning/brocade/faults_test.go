package brocade_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/brocade"
	"rerack.dev/rerack/sanzoning/brocadesim"
	"rerack.dev/rerack/sanzoning/driver"
)

const (
	hostA  = "10:00:00:00:00:00:00:0a"
	hostB  = "10:00:00:00:00:00:00:0b"
	target = "50:00:00:00:00:00:00:01"
)

func start(t *testing.T, change ...func(*brocadesim.Config)) *brocadesim.Switch {
	t.Helper()
	cfg := brocadesim.Config{Password: "s3cret", Active: "prod", Zones: []brocadesim.Zone{{Name: "backup", Members: []string{hostB, "50:00:00:00:00:00:00:77"}}}}
	for _, c := range change {
		c(&cfg)
	}
	sim, err := brocadesim.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sim.Close)
	return sim
}

func open(t *testing.T, sim *brocadesim.Switch, change ...func(*brocade.Config)) *brocade.Fabric {
	t.Helper()
	cfg := brocade.Config{URL: sim.URL(), TLS: &tls.Config{RootCAs: sim.Roots()}, BusyWait: time.Millisecond,
		Login: func(context.Context) (string, string, error) { return "rerack", "s3cret", nil }}
	for _, c := range change {
		c(&cfg)
	}
	f, err := brocade.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func zone(name string, epoch uint64, initiators ...string) driver.Zone {
	if initiators == nil {
		initiators = []string{}
	}
	return driver.Zone{Name: name, Initiators: initiators, Targets: []string{target}, Epoch: epoch}
}

func set(t *testing.T, f *brocade.Fabric, zones ...driver.Zone) error {
	t.Helper()
	_, err := f.Apply(within(t, time.Minute), driver.ZoneChange{Owner: "run", Zones: zones})
	return err
}

// TestEveryRequestFails breaks each request of a change in each way. After it the fabric is as before or
// as asked, never between, nothing is left pending, and the same change again converges.
func TestEveryRequestFails(t *testing.T) {
	first := []driver.Zone{zone("vol-a", 1, hostA), zone("vol-b", 1, hostA), zone("vol-c", 7, hostA)}
	// A new epoch, one that closes, one that stays in its epoch, one that is new: every kind of edit.
	change := []driver.Zone{zone("vol-a", 2, hostB), zone("vol-b", 2), zone("vol-c", 7, hostB), zone("vol-d", 2, hostA)}
	reference := start(t)
	if err := set(t, open(t, reference), first...); err != nil {
		t.Fatal(err)
	}
	if err := set(t, open(t, reference), change...); err != nil {
		t.Fatal(err)
	}
	done := reference.Effective()

	for _, how := range []brocadesim.Failure{brocadesim.Refused, brocadesim.LostTail, brocadesim.Dropped} {
		t.Run(string(how), func(t *testing.T) {
			tried := 0
			for n := 1; ; n++ {
				sim := start(t)
				drv := open(t, sim)
				if err := set(t, drv, first...); err != nil {
					t.Fatal(err)
				}
				before := sim.Effective()
				sim.SetFaults(func(f *brocadesim.Faults) { f.FailAt = &brocadesim.FailPoint{N: n, How: how} })
				err := set(t, drv, change...)
				if sim.Faults().FailAt != nil { // there is no nth request
					if err != nil {
						t.Fatal(err)
					}
					break
				}
				tried++
				switch now := sim.Effective(); {
				case err == nil && !reflect.DeepEqual(now, done):
					t.Errorf("request %d: success is claimed with %+v", n, now)
				case !reflect.DeepEqual(now, before) && !reflect.DeepEqual(now, done):
					t.Errorf("request %d left the fabric between old and new: %+v", n, now)
				}
				if sim.Open() != "" {
					t.Errorf("request %d: a transaction is left open", n)
				}
				if err := set(t, drv, change...); err != nil {
					t.Errorf("request %d: the change repeated: %v", n, err)
				}
				if now := sim.Effective(); !reflect.DeepEqual(now, done) {
					t.Errorf("request %d: the change repeated left %+v, want %+v", n, now, done)
				}
				sim.Close()
			}
			// login, lock, two reads, five edits, commit, read back, logout
			if tried != 12 {
				t.Errorf("%d requests were broken, want 12", tried)
			}
		})
	}
}

func TestLostCommitReply(t *testing.T) {
	sim := start(t)
	sim.SetFaults(func(f *brocadesim.Faults) { f.DropReplyAfterCommit = 1 })
	if err := set(t, open(t, sim), zone("vol-a", 1, hostA)); err != nil {
		t.Fatalf("the commit took effect: %v", err)
	}
	if n := sim.Counters().Commits; n != 1 {
		t.Errorf("%d commits", n)
	}
}

func TestBusySwitch(t *testing.T) {
	sim := start(t)
	drv := open(t, sim)
	sim.SetFaults(func(f *brocadesim.Faults) { f.Refuse503 = 1 })
	if err := set(t, drv, zone("vol-a", 1, hostA)); err != nil {
		t.Errorf("busy once: %v", err)
	}
	sim.SetFaults(func(f *brocadesim.Faults) { f.Refuse503 = 2 })
	if err := set(t, drv, zone("vol-a", 2, hostA)); !fault.Is(err, fault.Busy) {
		t.Errorf("busy twice: %v", err)
	}
}

// TestSomebodyElsesLock: their transaction is respected, and they are named (hazard H22).
func TestSomebodyElsesLock(t *testing.T) {
	sim := start(t)
	drv := open(t, sim)
	sim.SetFaults(func(f *brocadesim.Faults) { f.LockedBy = "mallory" })
	err := set(t, drv, zone("vol-a", 1, hostA))
	if !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), `"mallory"`) {
		t.Fatalf("%v, want busy because of mallory", err)
	}
	if sim.Open() != "mallory" || sim.Counters().Aborts != 0 {
		t.Fatal("mallory's transaction was touched")
	}
	sim.SetFaults(func(f *brocadesim.Faults) { f.LockedBy = "" })
	if err := set(t, drv, zone("vol-a", 1, hostA)); err != nil {
		t.Fatal(err)
	}
}

// TestLockTakenMeanwhile: somebody opens a transaction between our look at the lock and our first edit.
func TestLockTakenMeanwhile(t *testing.T) {
	sim := start(t)
	sim.SetFaults(func(f *brocadesim.Faults) {
		f.Interfere = func() { sim.SetFaults(func(f *brocadesim.Faults) { f.LockedBy = "mallory" }) }
	})
	err := set(t, open(t, sim), zone("vol-a", 1, hostA))
	if !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), `"mallory"`) {
		t.Fatalf("%v, want busy because of mallory", err)
	}
	if sim.Open() != "mallory" {
		t.Fatal("mallory's transaction is gone")
	}
}

// TestLeftOpen: a transaction of our own account is respected while it may be alive, and cleared when it
// must be a crash's (hazard H23).
func TestLeftOpen(t *testing.T) {
	var passed atomic.Int64 // nanoseconds since the start of the test
	begin := time.Now()
	sim := start(t, func(c *brocadesim.Config) {
		c.Now = func() time.Time { return begin.Add(time.Duration(passed.Load())) }
	})
	drv := open(t, sim)
	leaveOpen(t, sim)
	if err := set(t, drv, zone("vol-a", 1, hostA)); !fault.Is(err, fault.Busy) {
		t.Fatalf("a young transaction: %v, want busy", err)
	}
	passed.Add(int64(2 * time.Minute))
	if err := set(t, drv, zone("vol-a", 1, hostA)); err != nil {
		t.Fatal(err)
	}
	if sim.Counters().Aborts != 1 {
		t.Errorf("%d aborts", sim.Counters().Aborts)
	}
	for _, z := range sim.Effective() {
		if strings.Contains(z.Name, "abandoned") {
			t.Error("what the crash left pending was committed")
		}
	}
	leaveOpen(t, sim)
	passed.Add(int64(time.Hour)) // the lock expires, the transaction does not
	if err := set(t, drv, zone("vol-a", 2, hostA)); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "cfgtransabort") {
		t.Fatalf("a transaction without lock: %v, want busy", err)
	}
}

// leaveOpen is a process of ours that dies after its first edit.
func leaveOpen(t *testing.T, sim *brocadesim.Switch) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: sim.Roots()}, DisableKeepAlives: true}}
	post := func(path, body string, sign func(*http.Request)) http.Header {
		t.Helper()
		req, err := http.NewRequestWithContext(within(t, time.Minute), http.MethodPost, sim.URL()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("User-Agent", "rerack")
		sign(req)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode/100 != 2 {
			t.Fatalf("%s: %s", path, resp.Status)
		}
		return resp.Header
	}
	token := post("/rest/login", "", func(r *http.Request) { r.SetBasicAuth("rerack", "s3cret") }).Get("Authorization")
	post("/rest/running/brocade-zone/defined-configuration", `<defined-configuration><zone><zone-name>rr_abandoned_e1</zone-name>`+
		`<member-entry><entry-name>10:00:00:00:00:00:00:0a</entry-name></member-entry></zone></defined-configuration>`,
		func(r *http.Request) { r.Header.Set("Authorization", token) })
}

func TestConcurrentCommit(t *testing.T) {
	sim := start(t)
	sim.SetFaults(func(f *brocadesim.Faults) {
		f.Interfere = func() {
			if err := sim.Edit(func(d *brocadesim.Defined) {
				d.Zones["new"] = brocadesim.Zone{Name: "new", Members: []string{hostB, target}}
				d.Cfgs["prod"] = append(d.Cfgs["prod"], "new")
			}); err != nil {
				t.Error(err)
			}
		}
	})
	drv := open(t, sim)
	err := set(t, drv, zone("vol-a", 1, hostA))
	if !fault.Is(err, fault.Conflict) {
		t.Fatalf("%v, want a conflict", err)
	}
	names := func() (out []string) {
		for _, z := range sim.Effective() {
			out = append(out, z.Name)
		}
		return out
	}
	if got := names(); !slices.Equal(got, []string{"backup", "new"}) || sim.Open() != "" {
		t.Fatalf("zones %v, transaction of %q", got, sim.Open())
	}
	if err := set(t, drv, zone("vol-a", 1, hostA)); err != nil {
		t.Fatal(err)
	}
	if got := names(); !slices.Equal(got, []string{"backup", "new", "rr_vol_a_e1"}) {
		t.Fatalf("zones %v", got)
	}
}

// TestMeddledZones: what a person did to a zone of ours is put right, and its epoch still counts.
func TestMeddledZones(t *testing.T) {
	sim := start(t)
	drv := open(t, sim)
	if err := set(t, drv, zone("vol-a", 5)); err != nil {
		t.Fatal(err)
	}
	for name, meddle := range map[string]func(*brocadesim.Defined){
		"an intruder": func(d *brocadesim.Defined) { add(d, "rr_vol_a_e5", hostA) },
		"an older twin": func(d *brocadesim.Defined) {
			d.Zones["rr_vol_a_e3"] = d.Zones["backup"]
			d.Cfgs["prod"] = append(d.Cfgs["prod"], "rr_vol_a_e3")
		},
		"stored, not used": func(d *brocadesim.Defined) { d.Cfgs["prod"] = []string{"backup"} },
	} {
		if err := sim.Edit(meddle); err != nil {
			t.Fatal(err)
		}
		if err := set(t, drv, zone("vol-a", 4, hostA)); !fault.Is(err, fault.Stale) {
			t.Errorf("%s: an older epoch: %v", name, err)
		}
		if err := set(t, drv, zone("vol-a", 5)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		zones, err := drv.Zones(within(t, time.Minute))
		if err != nil || !reflect.DeepEqual(zones, []driver.Zone{zone("vol-a", 5)}) {
			t.Errorf("%s: zones %+v, %v", name, zones, err)
		}
	}
}

func add(d *brocadesim.Defined, name, member string) {
	z := d.Zones[name]
	z.Members = append(z.Members, member)
	d.Zones[name] = z
}

func TestNoConfigurationInForce(t *testing.T) {
	sim := start(t, func(c *brocadesim.Config) { c.Active, c.Zones = "", nil })
	if err := set(t, open(t, sim), zone("vol-a", 1, hostA)); !fault.Is(err, fault.Unsafe) {
		t.Fatalf("%v, want unsafe", err)
	}
	if sim.Open() != "" || sim.Counters().Commits != 0 {
		t.Error("the fabric was touched")
	}
}

// TestLogin: a refused password is tried once, because more would lock the account.
func TestLogin(t *testing.T) {
	sim := start(t)
	sim.SetFaults(func(f *brocadesim.Faults) { f.AuthFail = true })
	if err := set(t, open(t, sim), zone("vol-a", 1, hostA)); !fault.Is(err, fault.Unauthorized) || strings.Contains(err.Error(), "s3cret") {
		t.Fatal(err)
	}
	if n := sim.Counters().Requests; n != 1 {
		t.Errorf("%d requests", n)
	}
	sim.SetFaults(func(f *brocadesim.Faults) { f.AuthFail = false })
	stranger := open(t, sim, func(c *brocade.Config) { c.TLS = &tls.Config{RootCAs: x509.NewCertPool()} })
	if _, err := stranger.Zones(within(t, time.Minute)); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("unverified certificate: %v", err)
	}
	if n := sim.Counters().Logins; n != 0 {
		t.Error("the password went to a switch that was not verified")
	}
}

func TestSilentAndDeadSwitch(t *testing.T) {
	sim := start(t)
	drv := open(t, sim)
	sim.SetFaults(func(f *brocadesim.Faults) { f.Hang = true })
	if _, err := drv.Zones(within(t, 100*time.Millisecond)); !fault.Is(err, fault.Timeout) {
		t.Errorf("hanging: %v", err)
	}
	sim.SetFaults(func(f *brocadesim.Faults) { f.Hang = false })
	sim.Kill()
	if _, err := drv.Zones(within(t, time.Minute)); !fault.Is(err, fault.Unreachable) {
		t.Errorf("dead: %v", err)
	}
	if err := sim.Revive(); err != nil {
		t.Fatal(err)
	}
	if err := set(t, drv, zone("vol-a", 1, hostA)); err != nil {
		t.Error(err)
	}
}

func TestConfig(t *testing.T) {
	good := brocade.Config{URL: "https://switch.example", Login: func(context.Context) (string, string, error) { return "", "", nil }}
	for key, change := range map[string]func(*brocade.Config){
		"url":           func(c *brocade.Config) { c.URL = "http://switch.example" },
		"virtualFabric": func(c *brocade.Config) { c.VirtualFabric = 129 },
		"tls":           func(c *brocade.Config) { c.TLS = &tls.Config{InsecureSkipVerify: true} },
		"login":         func(c *brocade.Config) { c.Login = nil },
		"busyWait":      func(c *brocade.Config) { c.BusyWait = -1 },
		"staleAfter":    func(c *brocade.Config) { c.StaleAfter = -1 },
		"maxBytes":      func(c *brocade.Config) { c.MaxBytes = -1 },
	} {
		cfg := good
		change(&cfg)
		if _, err := brocade.New(cfg); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
	if _, err := brocade.New(good); err != nil {
		t.Error(err)
	}
}
