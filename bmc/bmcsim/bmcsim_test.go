package bmcsim_test

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/bmcsim"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/bmc/ipmi"
	"rerack.dev/rerack/bmc/redfish"
)

func cred() bmc.Credential {
	return bmc.Credential{User: "admin", Password: bmc.NewSecret("correct horse")}
}

// grow starts n BMCs, each on an address of its own and the same port, as in a data centre.
func grow(t testing.TB, n int) (*bmcsim.Farm, []bmc.Endpoint, []*bmcsim.BMC) {
	t.Helper()
	ca, err := bmcsim.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	farm := bmcsim.NewFarm(ca)
	t.Cleanup(func() {
		if err := farm.Close(); err != nil {
			t.Errorf("close farm: %v", err)
		}
	})
	var (
		eps  []bmc.Endpoint
		sims []*bmcsim.BMC
		port = "0"
	)
	for i := range n {
		m := bmcsim.NewMachine(driver.Inventory{UUID: fmt.Sprintf("00000000-0000-4000-8000-%012d", i), Serial: fmt.Sprintf("S%05d", i)}, bmcsim.WithPower(i%2 == 0))
		host := net.IPv4(127, 90, byte(i/250), byte(1+i%250)).String()
		b, err := farm.Add(bmcsim.Config{Name: fmt.Sprintf("m%d", i), Addr: net.JoinHostPort(host, port), Backend: m, Users: []bmc.Credential{cred()}})
		if err != nil {
			t.Fatal(err)
		}
		port = fmt.Sprint(b.Port())
		eps, sims = append(eps, b.Endpoint(bmc.Redfish, "all")), append(sims, b)
	}
	return farm, eps, sims
}

func fleet(t testing.TB, poll time.Duration) *bmc.Fleet {
	t.Helper()
	f, err := bmc.NewFleet(bmc.Config{PollTimeout: poll, CallTimeout: poll,
		Openers:     map[bmc.Protocol]bmc.Opener{bmc.Redfish: redfish.Opener{}, bmc.IPMI: ipmi.Opener{}},
		Credentials: func(context.Context, string) (bmc.Credential, error) { return cred(), nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = f.Close(ctx) // hanging BMCs do not say good-bye
	})
	return f
}

// Two thousand BMCs live in one process, each with its own address, and idle ones cost next to nothing.
func TestFarmOfTwoThousand(t *testing.T) {
	n := 2000
	if testing.Short() {
		n = 200
	}
	goroutines, memory := runtime.NumGoroutine(), inUse()
	_, eps, sims := grow(t, n)
	perBMC := float64(inUse()-memory) / float64(n)
	if g := runtime.NumGoroutine() - goroutines; g > 3*n+10 {
		t.Errorf("%d goroutines for %d idle BMCs", g, n)
	}
	t.Logf("%d idle BMCs: %.0f KiB and %.1f goroutines each", n, perBMC/1024, float64(runtime.NumGoroutine()-goroutines)/float64(n))
	if perBMC > 64<<10 {
		t.Errorf("an idle BMC takes %.0f bytes", perBMC)
	}
	// Every 40th is used, by both protocols; each answers for its own machine.
	f := fleet(t, 20*time.Second)
	for i := 0; i < n; i += 40 {
		for _, p := range []bmc.Protocol{bmc.Redfish, bmc.IPMI} {
			ep := eps[i]
			ep.Protocol = p
			if err := f.Client(ep).VerifyIdentity(context.Background()); err != nil {
				t.Fatalf("%s over %s: %v", ep.Machine, p, err)
			}
		}
		if c := sims[i].Count("login"); c != 2 {
			t.Errorf("%s has %d logins, want 2", eps[i].Machine, c)
		}
	}
}

func inUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

func TestCloseLeavesNoGoroutine(t *testing.T) {
	before := runtime.NumGoroutine()
	farm, eps, sims := grow(t, 5)
	f := fleet(t, 5*time.Second)
	for _, ep := range eps {
		if _, err := f.Client(ep).Power(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	sims[0].SetFaults(func(f *bmcsim.Faults) { f.Hang = true })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, _ = f.Client(eps[0]).Power(ctx)
	_ = f.Close(context.Background())
	if err := sims[1].Close(); err != nil {
		t.Error(err)
	}
	if err := farm.Close(); err != nil {
		t.Error(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines before, %d after\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
		}
		runtime.Gosched()
	}
	if _, err := net.DialTimeout("tcp", sims[2].Addr(), time.Second); err == nil {
		t.Error("a closed BMC takes connections")
	}
}

func TestFaultsWhileRunning(t *testing.T) {
	_, eps, sims := grow(t, 1)
	f := fleet(t, 10*time.Second)
	c, b := f.Client(eps[0]), sims[0]
	if _, err := c.Power(context.Background()); err != nil {
		t.Fatal(err)
	}
	// A request that hangs goes on when the fault is taken away.
	b.SetFaults(func(f *bmcsim.Faults) { f.Hang = true })
	var wg sync.WaitGroup
	gets := b.Count("get")
	wg.Go(func() {
		if r, err := c.Power(context.Background()); err != nil || r.State != driver.PowerOn {
			t.Errorf("%+v, %v", r, err)
		}
	})
	b.SetFaults(func(f *bmcsim.Faults) { f.Hang = false })
	wg.Wait()
	if n := b.Count("get") - gets; n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
	b.SetFaults(func(f *bmcsim.Faults) { f.LieOff = true })
	if r, err := c.Power(context.Background()); err != nil || r.State != driver.PowerOff {
		t.Errorf("lying BMC: %+v, %v", r, err)
	}
	b.SetFaults(func(f *bmcsim.Faults) { *f = bmcsim.Faults{Delay: 50 * time.Millisecond} })
	start := time.Now()
	if _, err := c.Power(context.Background()); err != nil || time.Since(start) < 50*time.Millisecond {
		t.Errorf("delayed answer after %s, %v", time.Since(start), err)
	}
	b.SetFaults(func(f *bmcsim.Faults) { *f = bmcsim.Faults{Drop: true} })
	if _, err := c.Power(context.Background()); err == nil {
		t.Error("a dropped BMC answered")
	}
	if b.Counts()["login"] != 1 {
		t.Errorf("counts %v", b.Counts())
	}
}

func TestMachine(t *testing.T) {
	now := time.Unix(1000, 0)
	m := bmcsim.NewMachine(driver.Inventory{}, bmcsim.WithTransition(10*time.Second), bmcsim.WithClock(func() time.Time { return now }))
	press := func(b bmcsim.Button, want error) {
		t.Helper()
		if err := m.Press(b); err != want {
			t.Fatalf("%s: %v, want %v", b, err, want)
		}
	}
	state := func(want driver.PowerState) {
		t.Helper()
		if got := m.Power(); got != want {
			t.Fatalf("state %s, want %s", got, want)
		}
	}
	if err := m.SetBoot(driver.BootOverride{Device: driver.BootPXE, Once: true}); err != nil {
		t.Fatal(err)
	}
	press(bmcsim.PressReset, bmcsim.ErrRefused) // nothing to reset
	press(bmcsim.PressOn, nil)
	state(driver.PowerChanging)
	now = now.Add(10 * time.Second)
	state(driver.PowerOn)
	if b := m.Boots(); len(b) != 1 || b[0].Device != driver.BootPXE || m.Boot().Device != driver.BootDefault {
		t.Errorf("booted %+v, then pending %+v", b, m.Boot())
	}
	press(bmcsim.PressOff, nil)
	press(bmcsim.PressOn, nil) // in the off window: forgotten
	now = now.Add(10 * time.Second)
	state(driver.PowerOff)

	// Mains: a machine that was on comes back by itself, unless it was told to stay off (F4, H09).
	press(bmcsim.PressOn, nil)
	now = now.Add(10 * time.Second)
	m.Mains(false)
	state(driver.PowerOff)
	press(bmcsim.PressOn, bmcsim.ErrRefused)
	m.Mains(true)
	now = now.Add(10 * time.Second)
	state(driver.PowerOn)
	if err := m.SetPowerRestore(bmcsim.AlwaysOff); err != nil {
		t.Fatal(err)
	}
	m.Mains(false)
	m.Mains(true)
	now = now.Add(time.Minute)
	state(driver.PowerOff)
}

func TestConfigIsChecked(t *testing.T) {
	ca, err := bmcsim.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	m := bmcsim.NewMachine(driver.Inventory{})
	for name, c := range map[string]bmcsim.Config{"no backend": {Users: []bmc.Credential{cred()}}, "no users": {Backend: m},
		"no protocol": {Backend: m, Users: []bmc.Credential{cred()}, NoIPMI: true, NoRedfish: true},
		"bad address": {Backend: m, Users: []bmc.Credential{cred()}, Addr: "256.0.0.1:0"}} {
		if b, err := bmcsim.New(c, ca); err == nil {
			t.Errorf("%s: started %s", name, b.Addr())
			_ = b.Close()
		}
	}
	for _, p := range bmcsim.Profiles() {
		if got, err := bmcsim.ProfileNamed(p.Name); err != nil || got.Name != p.Name {
			t.Errorf("profile %s: %v", p.Name, err)
		}
	}
	if _, err := bmcsim.ProfileNamed("acme"); err == nil {
		t.Error("a profile that is not there was found")
	}
}

// BenchmarkFleetPoll reads 100 BMCs over held sessions of which 5 are black-holed: per round, until the
// last good reading is in.
func BenchmarkFleetPoll(b *testing.B) {
	for _, p := range []bmc.Protocol{bmc.Redfish, bmc.IPMI} {
		b.Run(string(p), func(b *testing.B) {
			_, eps, sims := grow(b, 100)
			for i := range eps {
				eps[i].Protocol = p
			}
			f := fleet(b, time.Second)
			read := func() (good int, last time.Duration) {
				start := time.Now()
				f.Poll(context.Background(), eps, 32, func(r bmc.PollResult) {
					if r.Err == nil {
						good, last = good+1, time.Since(start)
					}
				})
				return good, last
			}
			read() // log in
			for i := range 5 {
				sims[i*20].SetFaults(func(f *bmcsim.Faults) { f.Hang = true })
			}
			var total time.Duration
			rounds := 0
			for b.Loop() {
				good, last := read()
				if good != 95 {
					b.Fatalf("%d good readings, want 95", good)
				}
				total += last
				rounds++
			}
			b.ReportMetric(float64(total.Microseconds())/float64(rounds)/1000, "ms/last-good")
		})
	}
}
