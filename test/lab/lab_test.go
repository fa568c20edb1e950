package lab_test

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"rerack.dev/rerack/hypervisor/agent"
	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/pki"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/bootserver"
	"rerack.dev/rerack/pxe/dhcp"
	"rerack.dev/rerack/pxe/images"
	"rerack.dev/rerack/pxe/ipxe"
	"rerack.dev/rerack/pxe/pxetest"
	"rerack.dev/rerack/test/lab"
)

// story is the topology of the examples: twenty machines in rack-a, ten elsewhere.
func story(t testing.TB) *topology.Topology {
	t.Helper()
	topo, err := topology.LoadFS(os.DirFS("../../examples"), "story")
	must(t, err)
	return topo
}

func start(t testing.TB, topo *topology.Topology, change func(*lab.Config)) *lab.Lab {
	t.Helper()
	cfg := lab.Config{Topology: topo, Dir: t.TempDir(), FreePorts: true, WriteEvery: 5 * time.Millisecond, ImageBytes: 4 << 10}
	if change != nil {
		change(&cfg)
	}
	l, err := lab.Start(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	return l
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until ok is true; the limit is for a machine under heavy load.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func clean(t testing.TB, l *lab.Lab) {
	t.Helper()
	for _, v := range l.CheckInvariants().Violations {
		t.Errorf("unexpected violation: %+v", v)
	}
}

// plane is a boot server beside a lab.
type plane struct {
	table  *pxe.Table
	ledger *pxetest.Ledger
	ca     *pki.CA
}

// Join signs as the product does.
func (p *plane) Join(_ context.Context, j pxe.Join) (chain, ca []byte, err error) {
	chain, err = p.ca.SignAgent(j.CSR, j.Machine, j.Epoch)
	return chain, p.ca.PEM(), err
}

func serveBoot(t testing.TB, l *lab.Lab, dir string) *plane {
	t.Helper()
	p := &plane{ledger: pxetest.NewLedger()}
	var err error
	p.table, err = pxe.NewTable(make([]byte, 32))
	must(t, err)
	p.ca, err = pki.Open(t.TempDir())
	must(t, err)
	store, err := images.Open(filepath.Join(dir, "images"), images.Options{})
	must(t, err)
	web, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	must(t, err)
	tftp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	must(t, err)
	loaders := map[string]pxe.Digest{}
	for _, name := range []string{"undionly.kpxe", "snponly.efi", "snponly-arm64.efi", "shimx64.efi", "grubx64.efi", "grubaa64.efi"} {
		f, err := os.Open(filepath.Join(dir, "loaders", name))
		must(t, err)
		loaders[name], err = store.Import(t.Context(), name, f, "")
		must(t, err)
		must(t, f.Close())
	}
	s, err := bootserver.New(bootserver.Config{Table: p.table, Images: store, Loaders: loaders, TFTPConn: tftp, BaseURL: "http://" + web.Addr().String(),
		Sink: p.ledger, Joiner: p, HTTPListener: web, AgentHosts: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		DHCP: []dhcp.Listener{{Name: "lab", Conn: udp, ServerID: netip.MustParseAddr("127.0.0.1"), Relays: []netip.Prefix{lab.RelayPrefix}}}})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
		must(t, store.Close())
	})
	l.SetTFTPServer(netip.MustParseAddrPort(tftp.LocalAddr().String()))
	l.SetBootServer(netip.MustParseAddrPort(udp.LocalAddr().String()))
	return p
}

// boots puts an intent into the table.
func (p *plane) boots(t testing.TB, l *lab.Lab, name, mac, address, image string, epoch uint64, params ...ipxe.Param) {
	t.Helper()
	img := l.Topology().Images[image].Spec
	hw, err := pxe.ParseMAC(mac)
	must(t, err)
	k := &pxe.Kernel{Kernel: pxe.Digest(img.Kernel), Params: params}
	for _, d := range img.Initrds {
		k.Initrds = append(k.Initrds, pxe.Digest(d))
	}
	must(t, p.table.Set(pxe.Intent{Machine: name, Run: "r/1", Epoch: epoch, Expires: time.Now().Add(time.Hour), Boot: &pxe.Boot{Kernel: k},
		NICs: []pxe.NIC{{MAC: hw, Address: netip.MustParsePrefix(address)}}}))
}

func (p *plane) reached(t testing.TB, machine string, k pxe.Kind) pxe.Milestone {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	m, err := p.ledger.Wait(ctx, machine, k)
	if err != nil {
		t.Fatalf("%s never reached %s: %v; it reached %v", machine, k, err, p.ledger.Kinds(machine))
	}
	return m
}

func TestStoryRunsAndBurns(t *testing.T) {
	begin := time.Now()
	l := start(t, story(t), nil)
	if d := time.Since(begin); d > 2*time.Second && os.Getenv("RERACK_TIMING") != "" {
		t.Errorf("start took %s", d)
	}
	eventually(t, "every workload serves", func() bool { return l.Status().Serving == len(l.Topology().Workloads) })
	before := l.Status()
	if before.On == 0 || before.Off == 0 || before.NoMains != 0 {
		t.Errorf("%+v", before)
	}
	must(t, l.Burn("rack-a"))
	s := l.Status()
	if s.NoMains != 20 {
		t.Errorf("%d machines without mains, want 20", s.NoMains)
	}
	eventually(t, "twenty workloads are gone", func() bool { return before.Running-l.Status().Running == 20 })
	must(t, l.RestorePower("rack-a"))
	eventually(t, "the old systems are back", func() bool { return l.Status().Serving == before.Serving })
	clean(t, l)
}

func TestASpareBootsFromTheNetwork(t *testing.T) {
	topo := story(t)
	dir := t.TempDir()
	onProvisioning(topo, "b01", "app")
	l := start(t, topo, func(c *lab.Config) { c.Dir = dir })
	p := serveBoot(t, l, dir)
	must(t, l.Power("b01", true))
	eventually(t, "the firmware looks around", func() bool { return phase(l, "b01") == "no boot device" })
	nic := topo.Machines["b01"].Spec.NICs[0]
	p.boots(t, l, "b01", string(nic.MAC), "10.1.20.200/24", "linux-x86", 2, ipxe.Param{Key: "rerack.workload", Value: "edge2"},
		ipxe.Param{Key: "rerack.epoch", Value: "2"})
	must(t, l.Burn("rack-a"))
	p.reached(t, "b01", pxe.KindHealthy)
	h := l.World().Holders("edge2")
	if len(h) != 1 || h[0].Machine != "b01" || h[0].Epoch != 2 {
		t.Errorf("holders of edge2: %+v", h)
	}
	must(t, l.Power("b01", false))
	eventually(t, "its life ends", func() bool { return len(l.World().Holders("edge2")) == 0 && phase(l, "b01") == "" })
	clean(t, l)
}

func TestAHostRunsVirtualMachines(t *testing.T) {
	topo := story(t)
	dir := t.TempDir()
	onProvisioning(topo, "b01", "app")
	l := start(t, topo, func(c *lab.Config) { c.Dir = dir })
	p := serveBoot(t, l, dir)
	nic := topo.Machines["b01"].Spec.NICs[0]
	p.boots(t, l, "b01", string(nic.MAC), "10.1.20.200/24", "hypervisor-x86", 2)
	must(t, l.Burn("rack-a"))
	must(t, l.Power("b01", true))
	p.reached(t, "b01", pxe.KindHealthy)
	m := p.reached(t, "b01", pxe.KindPhoneHome)
	cert, err := p.ca.Client("rerack")
	must(t, err)
	c, err := agent.Dial(agent.ClientConfig{URL: m.AgentURL, Certificate: cert, CA: p.ca.Pool(), Machine: "b01", Epoch: 2})
	must(t, err)
	defer func() { must(t, c.Close()) }()
	ctx := t.Context()
	room, err := c.Capacity(ctx)
	must(t, err)
	if room.CPUs != 12 || room.FreeMemory != 32768 {
		t.Errorf("capacity %+v", room)
	}
	const mac = "02:00:00:00:00:07"
	p.boots(t, l, "vm-dns1", mac, "10.1.20.53/24", "linux-x86", 2, ipxe.Param{Key: "rerack.workload", Value: "dns1"},
		ipxe.Param{Key: "rerack.epoch", Value: "2"})
	spec := driver.Spec{Name: "dns1", UUID: "8fbf43ac-18d1-4480-82ce-5095cffe1059", CPUs: 2, MemoryMiB: 2048, Arch: "x86_64", Firmware: "uefi",
		NICs: []driver.NIC{{MAC: mac, VLAN: topo.Networks["app"].Spec.VLAN}}, Epoch: 2}
	must(t, c.Define(ctx, spec))
	if err := c.Start(ctx, "dns1", 1); !fault.Is(err, fault.Stale) {
		t.Errorf("a stale start: %v", err)
	}
	must(t, c.Start(ctx, "dns1", 2))
	p.reached(t, "vm-dns1", pxe.KindHealthy)
	if body := probe(t, l, "10.1.20.53:80"); body != http.StatusOK {
		t.Errorf("health check through the proxy: %d", body)
	}
	if h := l.World().Holders("dns1"); len(h) != 1 || h[0].VM != "dns1" || h[0].Machine != "b01" {
		t.Errorf("holders %+v", h)
	}
	big := spec
	big.Name, big.CPUs, big.UUID, big.NICs = "big", 11, "8fbf43ac-18d1-4480-82ce-5095cffe1060", nil
	if err := c.Define(ctx, big); !fault.Is(err, fault.Conflict) {
		t.Errorf("a VM that does not fit: %v", err)
	}
	must(t, c.Stop(ctx, "dns1", 2))
	must(t, c.Undefine(ctx, "dns1", 2))
	must(t, c.Stop(ctx, "dns1", 2))
	if h := l.World().Holders("dns1"); len(h) != 0 {
		t.Errorf("a stopped VM holds %+v", h)
	}
	must(t, l.Power("b01", false))
	if _, err := c.Capacity(ctx); err == nil {
		t.Error("the agent outlived its machine")
	}
	clean(t, l)
}

// onProvisioning gives a machine a network of its own, and so its port a VLAN from the start.
func onProvisioning(topo *topology.Topology, machine, network string) {
	m := topo.Machines[machine]
	m.Spec.Provisioning = topology.Attachment{Network: network, Address: netip.MustParseAddr("10.1.20.200")}
	topo.Machines[machine] = m
}

func phase(l *lab.Lab, machine string) string {
	for _, m := range l.Status().Machines {
		if m.Name == machine {
			return m.Phase
		}
	}
	return "no such machine"
}

// probe does what the product's health check does.
func probe(t testing.TB, l *lab.Lab, at string) int {
	t.Helper()
	u, err := url.Parse(l.Topology().Sites["hall-1"].Spec.ProbeProxy)
	must(t, err)
	c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{Proxy: http.ProxyURL(u), DisableKeepAlives: true}}
	resp, err := c.Get("http://" + at + "/")
	if err != nil {
		return 0
	}
	must(t, resp.Body.Close())
	return resp.StatusCode
}
