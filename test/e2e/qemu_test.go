package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/qemu/qemutest"
)

// What three emulated machines may take on two processors.
const (
	realPlacement = time.Minute
	realRecovery  = 2 * time.Minute
)

// TestRealMachines runs the small data centre whose machines are real: firmware, boot loader and kernel that
// know nothing of Rerack. A workload is placed on one that boots by UEFI, then the rack of another burns and
// its workload comes back on a third, which boots by BIOS. When power returns, the old system starts, and
// what answers at its address is the new one.
func TestRealMachines(t *testing.T) { realMachines(t) }

// TestRealMachinesOnRealSwitches does the same with Open vSwitch in the place of every simulated switch, and
// looks that nothing of them is left.
func TestRealMachinesOnRealSwitches(t *testing.T) {
	qemutest.OpenVSwitch(t)
	if n := vSwitches(t); n != 0 {
		t.Skipf("%d Open vSwitches of somebody else's run here", n)
	}
	t.Cleanup(func() {
		for end := time.Now().Add(10 * time.Second); vSwitches(t) > 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("an Open vSwitch outlives its lab")
			}
		}
	})
	realMachines(t, "--switches", "ovs")
}

// vSwitches counts the processes of labs' Open vSwitches.
func vSwitches(t *testing.T) (n int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), "/rerack-ovs-") {
			n++
		}
	}
	return n
}

func realMachines(t *testing.T, more ...string) {
	t.Helper()
	qemutest.QEMU(t)
	qemutest.IPMISim(t)
	root := filepath.Dir(filepath.Dir(qemutest.Sources(t).Kernel))
	e := labUp(t, append(more, "--qemu", "--qemu-kernel", root, "--qemu-loaders", qemutest.Loaders(t), "--example", "real")...)
	t.Cleanup(func() { e.keepConsoles("a01", "b01", "c01") })
	e.untilSeen()
	e.until(time.Minute, "web1 answers from the machine it is installed on", func() bool { return e.answers("10.2.10.11:80", "web1", 1) })

	begin := time.Now()
	e.run("workload", "place", "app1", "--wait")
	placed := time.Since(begin)
	if !e.answers("10.2.20.11:80", "app1", 2) {
		t.Error("app1 does not answer, or not as epoch 2")
	}
	b01 := e.console("b01")
	for _, want := range []string{"NBP filename is snponly.efi", "rerack: dhcp address=10.2.20.11", "rerack: start workload=app1 epoch=2", "rerack: healthy"} {
		if !strings.Contains(b01, want) {
			t.Errorf("the console of b01 does not say %q", want)
		}
	}

	begin = time.Now()
	if n := len(e.emulators()); n != 2 {
		t.Errorf("%d machines are processes, want a01 and b01", n)
	}
	e.run("lab", "burn", "rack-a")
	e.until(10*time.Second, "the machine of the burned rack is gone", func() bool { return len(e.emulators()) == 1 })
	v, code := e.wait("rack-a")
	recovered := time.Since(begin)
	if r := v.Report; code != 0 || v.State != "done" || r.Recovered != 1 || r.Of != 1 || r.BareMetal != 1 {
		t.Fatalf("recovery wait ends with %d; run %s is %s: %s\n%+v", code, v.ID, v.State, v.Reason, v.Report)
	}
	if where := v.Results[0].Where.Machine; where != "c01" {
		t.Errorf("web1 runs on %s", where)
	}
	if !e.answers("10.2.10.11:80", "web1", 3) || !e.answers("10.2.20.11:80", "app1", 2) {
		t.Error("after the fire web1 does not answer as epoch 3, or app1 as epoch 2")
	}

	e.run("lab", "restore-power", "rack-a")
	e.until(time.Minute, "the old system runs again", func() bool { return strings.Count(e.console("a01"), "rerack: serving") == 2 })
	for range 10 {
		if !e.answers("10.2.10.11:80", "web1", 3) {
			t.Fatal("the old web1 gets in the way of the new one")
		}
	}
	e.checkInvariants()
	figure(t, "real machines: UEFI by TFTP and iPXE, placed and healthy after %.1f s; BIOS, burn to report %.1f s, of which detection %.1f s",
		placed.Seconds(), recovered.Seconds(), v.Report.Detection.Seconds())
	if placed > slack(realPlacement) || recovered > slack(realRecovery) {
		t.Errorf("placing took %s and recovering %s; allowed are %s and %s", placed, recovered, slack(realPlacement), slack(realRecovery))
	}
	// A lab that is killed takes its machines along.
	left := e.emulators()
	if err := syscall.Kill(e.pid("lab"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	e.until(10*time.Second, "no machine outlives its lab", func() bool {
		for _, pid := range left {
			if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); strings.Contains(string(line), "qemu-system") {
				return false
			}
		}
		return true
	})
}

// emulators are the processes of real machines that are on.
func (e *evening) emulators() []int {
	e.t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		e.t.Fatal(err)
	}
	parent := strconv.Itoa(e.pid("lab"))
	var out []int
	for _, path := range all {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it ended meanwhile
		}
		// pid (name) state parent ...; a process that is dead and not yet collected is no machine.
		id, rest, _ := strings.Cut(string(b), " (")
		name, rest, _ := strings.Cut(rest, ") ")
		if f := strings.Fields(rest); len(f) > 1 && f[0] != "Z" && f[1] == parent && strings.HasPrefix(name, "qemu-system") {
			pid, err := strconv.Atoi(id)
			if err != nil {
				e.t.Fatal(err)
			}
			out = append(out, pid)
		}
	}
	return out
}

// console is all that a real machine ever said.
func (e *evening) console(machine string) string {
	b, err := os.ReadFile(filepath.Join(e.dir, "qemu", machine+".console"))
	if err != nil {
		return ""
	}
	return string(b)
}

// keepConsoles copies the consoles of a failed test to where they outlive it.
func (e *evening) keepConsoles(machines ...string) {
	if !e.t.Failed() {
		return
	}
	to := filepath.Join(artifacts, e.t.Name())
	if err := os.MkdirAll(to, 0o755); err != nil {
		e.t.Error(err)
		return
	}
	for _, machine := range machines {
		said := e.console(machine)
		if err := os.WriteFile(filepath.Join(to, machine+".console"), []byte(said), 0o644); err != nil {
			e.t.Error(err)
		}
		e.t.Logf("console of %s, the end of it:\n%s", machine, tail(said, 20))
	}
}

// proxy is the way in to the networks of the workloads.
func (e *evening) proxy() string {
	e.t.Helper()
	topo, err := topology.LoadFS(os.DirFS(e.dir), "topology")
	if err != nil {
		e.t.Fatal(err)
	}
	return topo.Sites["hall-1"].Spec.ProbeProxy
}

// answers asks at an address inside the data centre who is there.
func (e *evening) answers(at, workload string, epoch uint64) bool {
	e.t.Helper()
	proxy, err := url.Parse(e.proxy())
	if err != nil {
		e.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(e.t.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at+"/", nil)
	if err != nil {
		e.t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(proxy), DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	var page struct {
		Workload string
		Epoch    uint64
		Address  string
	}
	host, _, _ := net.SplitHostPort(at)
	err = json.NewDecoder(resp.Body).Decode(&page)
	return err == nil && page.Workload == workload && page.Epoch == epoch && page.Address == host
}
