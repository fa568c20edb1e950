package gateway_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/bmcsim"
	"rerack.dev/rerack/bmc/bmctest"
	bmcdriver "rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/bmc/ipmi"
	"rerack.dev/rerack/bmc/redfish"
	"rerack.dev/rerack/fabric"
	fabricdriver "rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/fabric/ovs"
	"rerack.dev/rerack/fabric/ovssim"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/workflows/gateway"
)

const secret = "correct horse"

// rack is a gateway, a switch and a BMC behind true protocols.
type rack struct {
	*gateway.Gateway
	sw      *ovssim.Switch
	bmc     *bmcsim.BMC
	machine *bmcsim.Machine
	topo    topology.Machine

	mu     sync.Mutex
	opened int           // drivers made
	closed int           // and closed
	later  time.Duration // that the gateway's clock is ahead
	hang   chan struct{} // opening a switch named "hung" waits for it
}

// counted tells when a driver is closed.
type counted struct {
	fabricdriver.Switch
	closed func()
}

func (c counted) Close() error {
	c.closed()
	return c.Switch.Close()
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newRack(t *testing.T) *rack {
	t.Helper()
	r := &rack{}
	var err error
	r.sw, err = ovssim.Start(ovssim.Config{Ports: []ovssim.Port{{Name: "p1", Untagged: 10, LinkUp: true}}})
	check(t, err)
	t.Cleanup(r.sw.Close)
	ca, err := bmcsim.NewCA()
	check(t, err)
	id := bmctest.SimIdentity()
	user := bmc.Credential{User: "admin", Password: bmc.NewSecret(secret)}
	r.machine = bmcsim.NewMachine(id, bmcsim.WithPower(false), bmcsim.WithTransition(10*time.Millisecond))
	r.bmc, err = bmcsim.New(bmcsim.Config{Name: "m1", Backend: r.machine, Users: []bmc.Credential{user}}, ca)
	check(t, err)
	t.Cleanup(func() { check(t, r.bmc.Close()) })
	fleet, err := bmc.NewFleet(bmc.Config{Openers: map[bmc.Protocol]bmc.Opener{bmc.Redfish: redfish.Opener{}, bmc.IPMI: ipmi.Opener{}},
		Credentials: func(context.Context, string) (bmc.Credential, error) { return user, nil }})
	check(t, err)
	ep := r.bmc.Endpoint(bmc.Redfish, "bmc")
	r.topo = topology.Machine{Kind: topology.KindMachine, Meta: topology.Meta{Name: "m1"}}
	r.topo.Spec.UUID, r.topo.Spec.Serial = id.UUID, id.Serial
	r.topo.Spec.BMC = topology.BMC{Address: ep.Address, Credentials: "bmc", Fingerprint: ep.Fingerprint}
	r.Gateway = gateway.New(gateway.Config{Fleet: fleet, DeviceCA: ep.CA, Switches: map[string]func(topology.Switch) (fabricdriver.Switch, error){"ovs": r.open}, Now: r.now})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		check(t, r.Gateway.Close(ctx))
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.opened != r.closed {
			t.Errorf("%d drivers were opened and %d closed", r.opened, r.closed)
		}
	})
	return r
}

func (r *rack) now() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Add(r.later)
}

func (r *rack) open(s topology.Switch) (fabricdriver.Switch, error) {
	if s.Meta.Name == "hung" {
		<-r.hang
	}
	d, err := ovs.New(ovs.Config{Endpoint: s.Spec.Address, Bridge: "br0"})
	if err != nil {
		return nil, err
	}
	p, err := fabric.New(d, fabric.Config{Name: s.Meta.Name, Protected: s.Spec.Protected})
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opened++
	return counted{p, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.closed++
	}}, nil
}

func (r *rack) counts() (opened, closed int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.opened, r.closed
}

func (r *rack) declared() topology.Switch {
	s := topology.Switch{Kind: topology.KindSwitch, Meta: topology.Meta{Name: "tor"}}
	s.Spec.Driver, s.Spec.Address = "ovs", r.sw.Endpoint()
	return s
}

// All who use a device share one session. One that is declared differently is another session beside it, for who
// still goes by the old declaration; the old one is closed when nobody has used it for long.
func TestOneSessionPerDevice(t *testing.T) {
	r := newRack(t)
	s := r.declared()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			ports, err := r.Ports(t.Context(), s)
			if err != nil || len(ports) != 1 || ports[0].Untagged != 10 || ports[0].Link != fabricdriver.LinkUp {
				t.Errorf("%+v, %v", ports, err)
			}
		})
	}
	wg.Wait()
	if n, c := r.counts(); n != 1 || c != 0 {
		t.Fatalf("%d drivers for one switch, %d closed", n, c)
	}
	labelled := s
	labelled.Meta.Labels = map[string]string{"row": "3"}
	_, err := r.Ports(t.Context(), labelled)
	check(t, err)
	if n, _ := r.counts(); n != 1 {
		t.Error("a label made another session")
	}
	guarded := s
	guarded.Spec.Protected = []string{"p1"}
	d, err := r.Switch(t.Context(), guarded)
	check(t, err)
	for range 3 {
		_, err = r.Ports(t.Context(), s)
		check(t, err)
		_, err = r.Ports(t.Context(), guarded)
		check(t, err)
	}
	if n, c := r.counts(); n != 2 || c != 0 {
		t.Errorf("declared differently: %d drivers, %d closed", n, c)
	}
	if _, err := d.Apply(t.Context(), fabricdriver.Change{Owner: "test", Settings: []fabricdriver.Setting{{Port: "p1", Untagged: 20, Epoch: 1}}}); !fault.Is(err, fault.Unsafe) {
		t.Errorf("a port that is protected now: %v", err)
	}
	if p, _ := r.sw.Port("p1"); p.Untagged != 10 {
		t.Errorf("it was changed to %d", p.Untagged)
	}
	r.mu.Lock()
	r.later = time.Hour
	r.mu.Unlock()
	_, err = r.Ports(t.Context(), guarded)
	check(t, err)
	if n, c := r.counts(); n != 2 || c != 1 {
		t.Errorf("an hour later: %d drivers, %d closed", n, c)
	}
}

// Opening one device hangs: the others are opened and used all the same, nobody waits for longer than he has, and
// in the end there is one session.
func TestHangingDeviceBlocksNoOther(t *testing.T) {
	r := newRack(t)
	r.hang = make(chan struct{})
	hung := r.declared()
	hung.Meta.Name = "hung"
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := r.Ports(short, hung); !fault.Is(err, fault.Timeout) {
				t.Errorf("the device that hangs: %v", err)
			}
		})
	}
	if _, err := r.Ports(t.Context(), r.declared()); err != nil {
		t.Errorf("the other device: %v", err)
	}
	wg.Wait()
	close(r.hang)
	if _, err := r.Ports(t.Context(), hung); err != nil {
		t.Errorf("when it hangs no more: %v", err)
	}
	if n, _ := r.counts(); n != 2 {
		t.Errorf("%d drivers for two switches", n)
	}
}

// A switch that restarts is reached again through the same driver.
func TestDeviceThatRestarts(t *testing.T) {
	r := newRack(t)
	s := r.declared()
	_, err := r.Ports(t.Context(), s)
	check(t, err)
	r.sw.Kill()
	if _, err := r.Ports(t.Context(), s); !fault.Is(err, fault.Unreachable) && !fault.Is(err, fault.Timeout) {
		t.Errorf("while it is away: %v", err)
	}
	check(t, r.sw.Revive())
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err = r.Ports(t.Context(), s); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if n, _ := r.counts(); n != 1 {
		t.Errorf("%d drivers", n)
	}
}

func TestUndriven(t *testing.T) {
	r := newRack(t)
	s := topology.Switch{Meta: topology.Meta{Name: "old"}}
	s.Spec.Driver = "telnet"
	_, serr := r.Switch(t.Context(), s)
	_, perr := r.Ports(t.Context(), s)
	_, ferr := r.Fabric(t.Context(), topology.Fabric{Meta: topology.Meta{Name: "old"}})
	_, lerr := r.Logins(t.Context(), topology.Fabric{Meta: topology.Meta{Name: "old"}})
	_, aerr := r.Array(t.Context(), topology.Array{Meta: topology.Meta{Name: "old"}})
	_, merr := r.Sessions(t.Context(), topology.Array{Meta: topology.Meta{Name: "old"}})
	for i, err := range []error{serr, perr, ferr, lerr, aerr, merr} {
		if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "old: no driver") {
			t.Errorf("%d: %v", i, err)
		}
	}
	if _, err := r.Machine(t.Context(), topology.Machine{}); !fault.Is(err, fault.NotFound) {
		t.Errorf("a machine that is not declared: %v", err)
	}
	broken := r.declared()
	broken.Spec.Address = "nonsense"
	if _, err := r.Switch(t.Context(), broken); err == nil {
		t.Error("an address that is none was opened")
	}
	if _, err := r.Ports(t.Context(), r.declared()); err != nil {
		t.Errorf("after a declaration that could not be opened: %v", err)
	}
}

// A machine is turned on once for its boot, however often the step is repeated, and off only as itself.
func TestMachine(t *testing.T) {
	r := newRack(t)
	net := bmcdriver.BootOverride{Device: bmcdriver.BootPXE, Mode: bmcdriver.FirmwareUEFI, Once: true}
	m, err := r.Machine(t.Context(), r.topo)
	check(t, err)
	for range 3 {
		check(t, m.On(t.Context(), net, time.Second))
	}
	if p, err := m.Power(t.Context()); err != nil || p.State != bmcdriver.PowerOn {
		t.Errorf("%+v, %v", p, err)
	}
	if n := len(r.machine.Presses()); n != 1 {
		t.Errorf("the button was pressed %d times", n)
	}
	if got := r.machine.Boots(); len(got) != 1 || got[0].Device != bmcdriver.BootPXE {
		t.Errorf("it booted %+v", got)
	}
	stranger := r.topo
	stranger.Spec.Serial, stranger.Spec.UUID = "OTHER", "00000000-0000-4000-8000-000000000000"
	if other, err := r.Machine(t.Context(), stranger); err == nil {
		if _, err := other.Off(t.Context(), 1, time.Millisecond); err == nil {
			t.Error("a machine was turned off through a BMC that is another's")
		}
	}
	if r.machine.Power() != bmcdriver.PowerOn {
		t.Fatal("the other machine is off")
	}
	readings, err := m.Off(t.Context(), 3, time.Millisecond)
	if err != nil || len(readings) != 3 {
		t.Errorf("%d readings, %v", len(readings), err)
	}
	check(t, m.StayOff(t.Context()))
	seen := map[string]bmcdriver.PowerState{}
	r.PollPower(t.Context(), []topology.Machine{r.topo}, func(name string, p bmcdriver.Reading, err error) {
		check(t, err)
		seen[name] = p.State
	})
	if seen["m1"] != bmcdriver.PowerOff {
		t.Errorf("the poll says %v", seen)
	}
}
