package fabrictest_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/fabric/fabrictest"
	"rerack.dev/rerack/fabric/ovs"
)

// vswitch is a real Open vSwitch in a private directory, with a datapath in user space and dummy ports:
// it needs no kernel module and no root.
type vswitch struct {
	dir     string
	servers []*exec.Cmd
}

const peerSchema = "/usr/share/openvswitch/vswitch.ovsschema"

func startVSwitch(t *testing.T) *vswitch {
	t.Helper()
	for _, tool := range []string{"ovsdb-server", "ovsdb-tool", "ovs-vswitchd", "ovs-vsctl", "ovs-appctl"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing(t, "openvswitch-switch", err)
		}
	}
	// A unix socket's path has 107 bytes, which t.TempDir easily exceeds.
	dir, err := os.MkdirTemp("", "ovs")
	if err != nil {
		t.Fatal(err)
	}
	v := &vswitch{dir: dir}
	t.Cleanup(func() {
		v.stop(t)
		if t.Failed() {
			for _, name := range []string{"ovsdb-server", "ovs-vswitchd"} {
				log, _ := os.ReadFile(v.path(name + ".log"))
				t.Logf("%s:\n%s", name, log)
			}
		}
		os.RemoveAll(dir)
	})
	v.run(t, "ovsdb-tool", "create", v.path("conf.db"), peerSchema)
	v.start(t)
	return v
}

func missing(t *testing.T, pkg string, err error) {
	t.Helper()
	if os.Getenv("RERACK_REQUIRE_PEERS") == "1" {
		t.Fatalf("package %s is required: %v", pkg, err)
	}
	t.Skipf("needs package %s: %v", pkg, err)
}

func (v *vswitch) path(name string) string { return filepath.Join(v.dir, name) }

func (v *vswitch) start(t *testing.T) {
	t.Helper()
	v.spawn(t, "ovsdb-server", v.path("conf.db"), "--remote=punix:"+v.path("db.sock"), "--unixctl="+v.path("db.ctl"))
	await(t, "the database", func() error {
		conn, err := net.Dial("unix", v.path("db.sock"))
		if err == nil {
			conn.Close()
		}
		return err
	})
	v.run(t, "ovs-vsctl", "--no-wait", "--db=unix:"+v.path("db.sock"), "init")
	v.spawn(t, "ovs-vswitchd", "unix:"+v.path("db.sock"), "--enable-dummy=override", "--disable-system", "--unixctl="+v.path("vs.ctl"))
	await(t, "the switch daemon", func() error {
		return v.command("ovs-appctl", "--target="+v.path("vs.ctl"), "version").Run()
	})
}

func (v *vswitch) spawn(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := v.command(name, append(args, "--log-file="+v.path(name+".log"), "--no-chdir", "-vconsole:off")...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v.servers = append(v.servers, cmd)
}

func (v *vswitch) stop(t *testing.T) {
	t.Helper()
	for i := len(v.servers) - 1; i >= 0; i-- {
		_ = v.servers[i].Process.Signal(syscall.SIGTERM)
		_ = v.servers[i].Wait() // the exit status of a terminated server says nothing
	}
	v.servers = nil
	for _, sock := range []string{"db.sock", "db.ctl", "vs.ctl"} {
		os.Remove(v.path(sock))
	}
}

func (v *vswitch) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "OVS_RUNDIR="+v.dir, "OVS_LOGDIR="+v.dir, "OVS_DBDIR="+v.dir, "OVS_SYSCONFDIR="+v.dir)
	return cmd
}

func (v *vswitch) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	var out, diag bytes.Buffer
	cmd := v.command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &diag
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, diag.String())
	}
	return strings.TrimSpace(out.String())
}

func (v *vswitch) vsctl(t *testing.T, args ...string) string {
	t.Helper()
	return v.run(t, "ovs-vsctl", append([]string{"--db=unix:" + v.path("db.sock"), "--timeout=20"}, args...)...)
}

func (v *vswitch) appctl(t *testing.T, args ...string) string {
	t.Helper()
	return v.run(t, "ovs-appctl", append([]string{"--target=" + v.path("vs.ctl")}, args...)...)
}

func await(t *testing.T, what string, try func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waiting for %s: %v", what, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (v *vswitch) addBridge(t *testing.T, ports ...string) {
	t.Helper()
	args := []string{"add-br", "br0"}
	for i, p := range ports {
		args = append(args, "--", "add-port", "br0", p, "--", "set", "Interface", p, "type=dummy", fmt.Sprintf("ofport_request=%d", i+1))
	}
	v.vsctl(t, args...)
}

func (v *vswitch) driver(t *testing.T) *ovs.Switch {
	t.Helper()
	d, err := ovs.New(ovs.Config{Endpoint: "unix:" + v.path("db.sock"), Bridge: "br0", Settle: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestRealOpenVSwitch(t *testing.T) {
	names := []string{"p1", "p2", "p3", "p4", "p5", "p6"}
	fabrictest.Run(t, func(t *testing.T) fabrictest.Rig {
		v := startVSwitch(t)
		v.addBridge(t, append(names, "uplink")...)
		return fabrictest.Rig{
			Ports: names,
			Open:  func(t *testing.T) driver.Switch { return v.driver(t) },
			Stranger: func(t *testing.T, port string) func(*testing.T) {
				v.vsctl(t, "set", "Port", port, "external_ids:iface-id=vif-of-"+port, "other_config:priority-tags=always")
				return func(t *testing.T) {
					if got := v.vsctl(t, "get", "Port", port, "external_ids:iface-id", "other_config:priority-tags"); got != "vif-of-"+port+"\nalways" {
						t.Errorf("port %s: %q", port, got)
					}
				}
			},
			Reload: func(t *testing.T) {
				v.stop(t)
				v.start(t)
			},
			SetLink: func(port string, up bool) {
				state := "down"
				if up {
					state = "up"
				}
				// Only the administrative state of a dummy port can be changed; its carrier follows.
				v.appctl(t, "netdev-dummy/set-admin-state", port, state)
			},
		}
	})
}

// TestFramesOfAShutPort asks the real forwarding code where frames would go.
func TestFramesOfAShutPort(t *testing.T) {
	v := startVSwitch(t)
	v.addBridge(t, "p1", "p2", "p3", "p4")
	// The bridge's own interface trunks every VLAN until told otherwise, the quarantine too.
	v.vsctl(t, "set", "Port", "br0", "tag=1")
	d := v.driver(t)
	apply := func(epoch uint64, s ...driver.Setting) {
		t.Helper()
		for i := range s {
			s[i].Epoch = epoch
		}
		if _, err := d.Apply(t.Context(), driver.Change{Owner: "run", Settings: s}); err != nil {
			t.Fatal(err)
		}
	}
	// reaches lists the ports a frame from a port is sent out of, "p<n>" or "p<n>:<vlan>" when tagged.
	reaches := func(from int, vlan int) string {
		t.Helper()
		flow := fmt.Sprintf("in_port=%d,dl_src=02:00:00:00:00:0%d,dl_dst=ff:ff:ff:ff:ff:ff", from, from)
		if vlan != 0 {
			flow += fmt.Sprintf(",dl_vlan=%d", vlan)
		}
		return datapathActions(t, v.appctl(t, "ofproto/trace", "br0", flow))
	}
	apply(1, driver.Setting{Port: "p1", Untagged: 10}, driver.Setting{Port: "p2", Untagged: 10},
		driver.Setting{Port: "p3", Untagged: 10, Tagged: []int{20}}, driver.Setting{Port: "p4", Tagged: []int{10, 20}})
	open := reaches(1, 0)
	for _, want := range []string{"2", "3", "push_vlan(vid=10,pcp=0),4"} {
		if !strings.Contains(open, want) {
			t.Fatalf("from p1 in VLAN 10: %q lacks %q", open, want)
		}
	}
	if got := reaches(4, 20); got != "3" {
		t.Fatalf("from p4 in VLAN 20: %q, want p3 alone", got)
	}

	apply(2, driver.Setting{Port: "p1", Shut: true}, driver.Setting{Port: "p2", Shut: true})
	for _, vlan := range []int{0, 10, 20, ovs.DefaultQuarantineVLAN} {
		if got := reaches(1, vlan); got != "drop" {
			t.Errorf("from the shut p1 in VLAN %d: %q", vlan, got)
		}
	}
	if got := reaches(3, 0); got != "push_vlan(vid=10,pcp=0),4" {
		t.Errorf("from p3 in VLAN 10: %q, want p4 alone", got)
	}
}

func datapathActions(t *testing.T, trace string) string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^Datapath actions: (.*)$`).FindStringSubmatch(trace)
	if m == nil {
		t.Fatalf("no actions in:\n%s", trace)
	}
	return m[1]
}
