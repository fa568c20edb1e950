package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/store/embedded"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/bootclient"
	"rerack.dev/rerack/pxe/httpboot"
	"rerack.dev/rerack/test/lab"
)

// BenchmarkStormOfThousand gives a server 1,000 machines with as many boot records, and leases, runs and results,
// kills it and measures how soon it serves again. Then all 1,000 machines boot at once through its DHCP, TFTP and
// HTTP until their systems have phoned home, while it watches the data centre as ever.
func BenchmarkStormOfThousand(b *testing.B) {
	const machines = 1000
	e := labUp(b, "--machines", fmt.Sprint(machines))
	topo, err := topology.LoadFS(os.DirFS(filepath.Join(e.dir, "topology")))
	if err != nil {
		b.Fatal(err)
	}
	e.kill()
	e.fill(topo)
	e.restart()
	e.measureRestarts(b, machines)

	s := &storm{e: e, topo: topo, dhcp: netip.MustParseAddrPort(e.flag("--dhcp-relay-listen")), tftp: netip.MustParseAddrPort(e.flag("--tftp"))}
	before, begin := e.used("server"), time.Now()
	s.boot(b)
	took, after := time.Since(begin), e.used("server")
	slices.Sort(s.took)
	measured(b, took.Seconds(), "storm-s")
	measured(b, s.took[len(s.took)/2].Seconds(), "boot-median-s")
	measured(b, s.took[len(s.took)-1].Seconds(), "boot-worst-s")
	measured(b, float64(s.again.Load()), "retransmits")
	measured(b, float64(s.failed.Load()), "failed")
	measured(b, (after.cpu - before.cpu).Seconds(), "server-cpu-s")
	measured(b, after.mib, "server-MiB")
	e.checkLog(b)
	e.checkInvariants()

	e.kill() // what was acknowledged is in the store
	if n := e.phonedHome(); n != machines {
		b.Errorf("the store has %d machines that phoned home, not %d", n, machines)
	}
	e.restart()
}

// flag is the value of one in the server's command line.
func (e *evening) flag(name string) string {
	e.t.Helper()
	i := slices.Index(e.server, name)
	if i < 0 {
		e.t.Fatalf("the server was not given %s", name)
	}
	return e.server[i+1]
}

func (e *evening) openStore() *embedded.Store {
	e.t.Helper()
	s, err := embedded.Open(embedded.Config{Path: filepath.Join(e.dir, "data", "state.db")})
	if err != nil {
		e.t.Fatal(err)
	}
	return s
}

// fill writes into the store of a server that does not run what one of this size holds in a bad hour: a boot of
// every machine, a lease of every workload, and an ended run with its results on every rack.
func (e *evening) fill(t *topology.Topology) {
	e.t.Helper()
	s := e.openStore()
	var ops []store.Op
	put := func(key string, v any) {
		raw, err := state.Encode(v)
		if err != nil {
			e.t.Fatal(err)
		}
		if ops = append(ops, store.Put(key, raw)); len(ops) == store.MaxOps {
			if err := s.Txn(e.t.Context(), ops...); err != nil {
				e.t.Fatal(err)
			}
			ops = nil
		}
	}
	now := time.Now()
	for _, name := range t.Names(topology.KindMachine) {
		put(state.BootsAt+name, bootOf(t, name, now))
	}
	for _, name := range t.Names(topology.KindWorkload) {
		home := t.Workloads[name].Spec.Home
		where, run := policies.Where{Machine: home}, t.Machines[home].Spec.Rack+"-1"
		put(state.LeasesAt+name, state.Lease{Workload: name, Epoch: 1, Holder: where, Since: now, Healthy: true})
		put(state.ResultsAt+run+"/"+name, state.Result{Name: name, State: "healthy", Where: where, Reason: "tightest fit",
			Times: map[string]time.Time{"fenced": now, "power-on": now, "dhcp": now, "kernel": now, "phone-home": now, "healthy": now}})
	}
	for _, rack := range t.Names(topology.KindRack) {
		put(state.RunsAt+rack+"-1", state.Run{ID: rack + "-1", Domain: "rack/" + rack, Trigger: "person", By: "operator",
			State: state.RunDone, Requested: now, Ended: now})
	}
	if err := s.Txn(e.t.Context(), ops...); err != nil {
		e.t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		e.t.Fatal(err)
	}
}

// bootOf boots the image of a machine's architecture in the provisioning network.
func bootOf(t *topology.Topology, name string, now time.Time) state.Boot {
	m := t.Machines[name].Spec
	image := t.Images[imageOf(t, m)].Spec
	net := t.Networks[m.Provisioning.Network].Spec
	return state.Boot{Name: name, Machine: name, Run: m.Rack + "-1", Epoch: 2, Workflow: "boot/" + name, MACs: []string{string(m.NICs[0].MAC)},
		Address: netip.PrefixFrom(m.Provisioning.Address, net.Subnet.Bits()).String(), Gateway: net.Gateway.String(), Hostname: name,
		Type: string(image.Type), Kernel: string(image.Kernel), Initrds: []string{string(image.Initrds[0])},
		Cmdline: map[string]string{"rerack.epoch": "2"}, Expires: now.Add(time.Hour)}
}

func imageOf(t *topology.Topology, m topology.MachineSpec) string {
	arch := t.HardwareTypes[m.HardwareType].Spec.Arch
	for _, name := range t.Names(topology.KindImage) {
		if i := t.Images[name].Spec; i.Arch == arch && i.Type == topology.ImageKernel {
			return name
		}
	}
	return ""
}

// phonedHome counts the machines whose phone-home is in the store of a server that does not run.
func (e *evening) phonedHome() (n int) {
	e.t.Helper()
	s := e.openStore()
	boots, err := state.List[state.Boot](e.t.Context(), s, state.BootsAt)
	if err != nil {
		e.t.Fatal(err)
	}
	for _, r := range boots {
		if r.PhonedAt != nil {
			n++
		}
	}
	if err := s.Close(); err != nil {
		e.t.Fatal(err)
	}
	return n
}

// storm boots every machine of a topology at once: firmware as the lab's machines have it, and a system that
// phones home.
type storm struct {
	e             *evening
	topo          *topology.Topology
	dhcp, tftp    netip.AddrPort
	again, failed atomic.Int64 // packets sent once more, machines that did not phone home

	mu   sync.Mutex
	took []time.Duration
}

func (s *storm) boot(b *testing.B) {
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i, name := range s.topo.Names(topology.KindMachine) {
		wg.Go(func() {
			<-start
			begin := time.Now()
			if err := s.machine(b.Context(), i, name); err != nil {
				s.failed.Add(1)
				b.Errorf("%s: %v", name, err)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.took = append(s.took, time.Since(begin))
		})
	}
	close(start)
	wg.Wait()
}

// machine boots number i, from addresses of its own: loopback is all one network.
func (s *storm) machine(ctx context.Context, i int, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	m := s.topo.Machines[name].Spec
	mac, err := pxe.ParseMAC(string(m.NICs[0].MAC))
	if err != nil {
		return err
	}
	arch := pxe.ArchEFIX64
	if s.topo.HardwareTypes[m.HardwareType].Spec.Arch == topology.ARM64 {
		arch = pxe.ArchEFIARM64
	}
	own := netip.AddrFrom4([4]byte{127, 11, byte(i >> 8), byte(i%255 + 1)})
	relay := lab.RelayPrefix.Addr().As4()
	relay[3] = byte(i%250 + 1)
	dial := &net.Dialer{LocalAddr: &net.TCPAddr{IP: own.AsSlice()}}
	out, err := bootclient.Run(ctx, bootclient.Config{
		MAC: mac, UUID: [16]byte{14: byte(i >> 8), 15: byte(i)}, Arch: arch, DHCPServer: s.dhcp, TFTPServer: s.tftp, Relay: netip.AddrFrom4(relay),
		LinkSelection: s.topo.Networks[m.Provisioning.Network].Spec.Gateway, CircuitID: m.NICs[0].Switch + "/" + m.NICs[0].Port,
		DialContext: dial.DialContext, ListenPacket: s.listen(own),
	})
	if err != nil {
		return err
	}
	want := s.topo.Images[imageOf(s.topo, m)].Spec
	if out.End != bootclient.EndKernel || string(out.Kernel) != string(want.Kernel) {
		return fmt.Errorf("it ended as %q with kernel %q: %s", out.End, out.Kernel, out.Reason)
	}
	system := &http.Client{Transport: &http.Transport{DialContext: dial.DialContext, DisableKeepAlives: true}}
	return bootclient.Report(ctx, system, out.PhoneHome, httpboot.Report{Nonce: bootclient.NewNonce()})
}

// listen opens sockets at a machine's own address, unless it asks for the relay's, and counts what they send again.
func (s *storm) listen(own netip.Addr) func(network, address string) (net.PacketConn, error) {
	return func(network, address string) (net.PacketConn, error) {
		if host, port, err := net.SplitHostPort(address); err == nil && (host == "" || host == "0.0.0.0") {
			address = net.JoinHostPort(own.String(), port)
		}
		c, err := net.ListenPacket(network, address)
		return &counting{PacketConn: c, again: &s.again}, err
	}
}

// counting counts datagrams that follow an equal one.
type counting struct {
	net.PacketConn
	again *atomic.Int64
	last  []byte
}

// bootpSecs is where a BOOTP message has the seconds since its first (RFC 951 section 3), and how long one is at least.
const bootpSecs, bootpLen = 8, 236

// WriteTo implements net.PacketConn.
func (c *counting) WriteTo(p []byte, to net.Addr) (int, error) {
	now := bytes.Clone(p)
	if len(now) >= bootpLen {
		now[bootpSecs], now[bootpSecs+1] = 0, 0
	}
	if bytes.Equal(now, c.last) {
		c.again.Add(1)
	}
	c.last = now
	return c.PacketConn.WriteTo(p, to)
}
