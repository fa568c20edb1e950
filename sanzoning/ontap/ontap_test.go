package ontap_test

import (
	"context"
	"crypto/tls"
	"net"
	"slices"
	"sync"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/pki"
	"rerack.dev/rerack/sanzoning/driver"
	"rerack.dev/rerack/sanzoning/ontap"
	"rerack.dev/rerack/sanzoning/ontapsim"
)

const (
	lun1, lun2 = "/vol/v1/lun1", "/vol/v1/lun2"
	portA      = "20:00:00:25:b5:00:00:0a"
	portB      = "20:00:00:25:b5:00:00:0b"
)

// world checks at every change that no LUN ever has two holders.
type world struct {
	t  *testing.T
	mu sync.Mutex
}

func (w *world) Masked(volume string, who []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(who) > 1 {
		w.t.Errorf("%s is open to %v at once", volume, who)
	}
}
func (*world) Logins() []string { return []string{portA} }

func setUp(t *testing.T) (*ontap.Array, *ontapsim.Sim) {
	t.Helper()
	ca, err := pki.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Server("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	sim, err := ontapsim.Start(ontapsim.Config{Listener: l, Certificate: cert, Username: "admin", Password: "pw", Backend: &world{t: t},
		LUNs: []ontapsim.LUN{{Name: lun1, SVM: "svm1"}, {Name: lun2, SVM: "svm1"}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sim.Close() })
	a, err := ontap.New(ontap.Config{Name: "fc1", URL: "https://" + l.Addr().String(), TLS: &tls.Config{RootCAs: ca.Pool()},
		Login: func(context.Context) (string, string, error) { return "admin", "pw", nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a, sim
}

func change(epoch uint64, volume string, who ...string) driver.MaskChange {
	return driver.MaskChange{Owner: "run-1", Masks: []driver.Mask{{Volume: volume, Initiators: who, Epoch: epoch}}}
}

func TestGrantMovesAndFences(t *testing.T) {
	a, sim := setUp(t)
	for _, step := range []struct {
		c     driver.MaskChange
		allow map[string]bool
	}{
		{change(1, lun1, portA), map[string]bool{portA: true, portB: false}},
		{change(2, lun1, portB), map[string]bool{portA: false, portB: true}},
		{change(3, lun1), map[string]bool{portA: false, portB: false}},
	} {
		for range 2 { // repeating changes nothing
			if _, err := a.Apply(t.Context(), step.c); err != nil {
				t.Fatal(err)
			}
			for p, want := range step.allow {
				if got := sim.WriteAllowed(lun1, p); got != want {
					t.Fatalf("after epoch %d: %s may write: %v", step.c.Masks[0].Epoch, p, got)
				}
			}
		}
	}
	before := sim.Counters().Writes
	if res, err := a.Apply(t.Context(), change(3, lun1)); err != nil || len(res.Changed) != 0 || sim.Counters().Writes != before {
		t.Fatalf("a repeated change wrote: %+v, %v", res, err)
	}
	if _, err := a.Apply(t.Context(), change(2, lun1, portA)); !fault.Is(err, fault.Stale) {
		t.Fatalf("a stale epoch: %v", err)
	}
}

// Whatever request of a change fails, nobody is granted twice, and the same change again converges.
func TestFailEveryWrite(t *testing.T) {
	for _, lost := range []bool{false, true} {
		for n := 1; n < 10; n++ {
			a, sim := setUp(t)
			if _, err := a.Apply(t.Context(), change(1, lun1, portA)); err != nil {
				t.Fatal(err)
			}
			before := sim.Counters().Writes
			sim.SetFaults(ontapsim.Faults{FailWrite: n, DropReply: lost && n == 1})
			_, err := a.Apply(t.Context(), change(2, lun1, portB))
			sim.SetFaults(ontapsim.Faults{})
			if err == nil && sim.Counters().Writes-before < n {
				break // the change has fewer writes than n
			}
			if err == nil && !lost {
				t.Fatalf("write %d failed and nobody noticed", n)
			}
			if _, err := a.Apply(t.Context(), change(2, lun1, portB)); err != nil {
				t.Fatalf("repeated after write %d failed: %v", n, err)
			}
			if sim.WriteAllowed(lun1, portA) || !sim.WriteAllowed(lun1, portB) {
				t.Fatalf("after write %d failed and a repeat, the wrong port may write", n)
			}
		}
	}
}

func TestForeignMapIsRefusedAndKept(t *testing.T) {
	a, sim := setUp(t)
	sim.Plant(ontapsim.Group{Name: "tape", Initiators: []string{portA}, LUNs: []string{lun2}})
	if _, err := a.Apply(t.Context(), change(5, lun2, portB)); !fault.Is(err, fault.Unsafe) {
		t.Fatalf("a LUN somebody else has mapped: %v", err)
	}
	if g := sim.Groups(); len(g) != 1 || !slices.Equal(g[0].Initiators, []string{portA}) {
		t.Fatalf("the foreign group changed: %+v", g)
	}
	if _, err := a.Apply(t.Context(), change(5, "/vol/none")); !fault.Is(err, fault.NotFound) {
		t.Fatalf("an unknown LUN: %v", err)
	}
}

func TestSessionsAreLoginsOfTheMasked(t *testing.T) {
	a, _ := setUp(t)
	if _, err := a.Apply(t.Context(), change(1, lun1, portA)); err != nil {
		t.Fatal(err)
	}
	got, err := a.Sessions(t.Context())
	if err != nil || len(got) != 1 || got[0].Initiator != portA || got[0].Volume != lun1 {
		t.Fatalf("sessions: %+v, %v", got, err)
	}
}

func TestDeviceThatRefusesIsNamed(t *testing.T) {
	a, sim := setUp(t)
	sim.SetFaults(ontapsim.Faults{Refuse: true})
	if _, err := a.Masks(t.Context()); !fault.Is(err, fault.Busy) {
		t.Fatalf("503: %v", err)
	}
	sim.SetFaults(ontapsim.Faults{Dead: true})
	if _, err := a.Masks(t.Context()); !fault.Is(err, fault.Unreachable) {
		t.Fatalf("a closed connection: %v", err)
	}
}
