package libvirt_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/hypervisor/libvirt"
)

// daemon is a libvirtd of our own, with namespaces of its own: whatever it starts dies with it, and the
// bridges it has nobody else sees.
type daemon struct {
	dir, socket string
	virsh       string
	cmd         *exec.Cmd
	log         *os.File
}

// setup is what a daemon has beyond bridges.
type setup struct {
	volumes bool   // a block device, and an iSCSI target of tgtd behind CHAP
	tls     string // port to listen on for TLS, on the loopback of this machine instead of one of its own
	pki     string // folder with ca.pem, cert.pem and key.pem for that
}

// script sets the namespaces up. Its arguments are the daemon's folder, the block device, and what setup
// has of TLS.
const script = `set -e
D=$1
for d in run lib log cache etc; do mkdir -p "$D/$d"; done
mkdir -p /run/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt /etc/libvirt
mount --make-rprivate /
mount --bind "$D/run" /run/libvirt
mount --bind "$D/lib" /var/lib/libvirt
mount --bind "$D/log" /var/log/libvirt
mount --bind "$D/../cache" /var/cache/libvirt
mount --bind "$D/etc" /etc/libvirt
# Debian builds in users that only its package of units makes.
cp /etc/passwd "$D/passwd"; cp /etc/group "$D/group"
grep -q ^libvirt-qemu: /etc/passwd || echo 'libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin' >> "$D/passwd"
for g in libvirt-qemu libvirt; do grep -q "^$g:" /etc/group || echo "$g:x:64055:" >> "$D/group"; done
mount --bind "$D/passwd" /etc/passwd
mount --bind "$D/group" /etc/group
L=
if [ -n "$3" ]; then L=-l; else
  ip link set lo up
  for v in 1 120 121 4094; do ip link add "br-vlan$v" type bridge; ip link set "br-vlan$v" up; done
fi
printf '%s\n' 'security_driver = "none"' 'user = "root"' 'group = "root"' 'cgroup_controllers = []' 'namespaces = []' 'remember_owner = 0' > /etc/libvirt/qemu.conf
printf '%s\n' "unix_sock_dir = \"$D/run\"" 'auth_unix_rw = "none"' 'auth_unix_ro = "none"' 'unix_sock_rw_perms = "0700"' \
  'listen_addr = "127.0.0.1"' 'tls_no_sanity_certificate = 1' "tls_port = \"$3\"" "ca_file = \"$4/ca.pem\"" "cert_file = \"$4/cert.pem\"" "key_file = \"$4/key.pem\"" > /etc/libvirt/libvirtd.conf
# A disk that the host sees by its path, and a target with two volumes behind a login.
truncate -s 1M "$D/root.img" "$D/log.img"
[ -z "$2" ] || ln -s "$2" "$D/run/fc-500601603b2011aa-lun-3"
if [ -n "$2" ]; then
  TGT_IPC_SOCKET=$D/tgt.sock tgtd -f -C 7 --iscsi portal=127.0.0.1:3260 &
  export TGT_IPC_SOCKET=$D/tgt.sock
  for i in $(seq 200); do tgtadm -C 7 --lld iscsi --mode target --op new --tid 1 -T iqn.2026-01.org.example:db1 2>/dev/null && break; sleep 0.05; done
  tgtadm -C 7 --lld iscsi --mode logicalunit --op new --tid 1 --lun 1 -b "$D/root.img"
  tgtadm -C 7 --lld iscsi --mode logicalunit --op new --tid 1 --lun 2 -b "$D/log.img"
  tgtadm -C 7 --lld iscsi --mode account --op new --user db1 --password correct-horse
  tgtadm -C 7 --lld iscsi --mode account --op bind --tid 1 --user db1
  tgtadm -C 7 --lld iscsi --mode target --op bind --tid 1 --initiator-name iqn.2026-01.org.example:host-db1
fi
virtlogd -d
# Not exec: the first process has to reap, and libvirtd waits for a QEMU that nobody reaps for ever.
libvirtd $L -f /etc/libvirt/libvirtd.conf & wait $!
`

// need finds the programs of the real thing, or skips the test.
func need(t *testing.T, programs ...string) {
	t.Helper()
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin") // where Debian keeps daemons
	why := ""
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			why = p + " is not installed"
		}
	}
	if os.Getuid() != 0 {
		why = "namespaces need root"
	}
	if why == "" {
		return
	}
	if os.Getenv("RERACK_REQUIRE_PEERS") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// start starts libvirtd until the test ends.
func start(t *testing.T, has setup) *daemon {
	t.Helper()
	need(t, "libvirtd", "virtlogd", "virsh", "qemu-system-x86_64", "unshare", "ip")
	parent, err := os.MkdirTemp("", "libvirt") // short: it has sockets
	check(t, err)
	d := &daemon{dir: filepath.Join(parent, "d")}
	d.socket = filepath.Join(d.dir, "run", "libvirt-sock")
	check(t, os.MkdirAll(d.dir, 0o700))
	check(t, os.MkdirAll(filepath.Join(parent, "cache"), 0o700))
	d.log, err = os.Create(filepath.Join(parent, "log"))
	check(t, err)
	loop := ""
	if has.volumes {
		need(t, "tgtd", "tgtadm", "losetup")
		loop = loopDevice(t, filepath.Join(parent, "fc.img"))
	}
	args := []string{"-m", "-p", "-f", "--mount-proc", "--kill-child"}
	if has.tls == "" {
		args = append(args, "-n")
	}
	d.cmd = exec.Command("unshare", append(args, "sh", "-c", script, "sh", d.dir, loop, has.tls, has.pki)...) //nolint:noctx // ends with the test
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	check(t, d.cmd.Start())
	exited := make(chan struct{})
	go func() { defer close(exited); _ = d.cmd.Wait() }()
	t.Cleanup(func() {
		_ = d.cmd.Process.Kill()
		<-exited
		_ = d.log.Close()
		// The namespaces' processes end with their first one, and may still write for a moment.
		await(t, "its folder to go", func() bool { return os.RemoveAll(parent) == nil })
	})
	d.virsh = "qemu+unix:///system?socket=" + d.socket
	await(t, "libvirtd", func() bool {
		select {
		case <-exited:
			text, _ := os.ReadFile(d.log.Name())
			t.Fatalf("libvirtd ended: %s", text)
		default:
		}
		c, err := net.Dial("unix", d.socket)
		if err != nil {
			return false
		}
		_ = c.Close()
		return true
	})
	return d
}

// loopDevice makes a block device of a file until the test ends.
func loopDevice(t *testing.T, file string) string {
	t.Helper()
	check(t, os.WriteFile(file, make([]byte, 1<<20), 0o600))
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { // while a QEMU that is about to end has it, it goes with that
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil { //nolint:noctx // the test's is over
			t.Errorf("losetup: %v: %s", err, out)
		}
	})
	return device
}

func await(t *testing.T, what string, ready func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ready(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s in time", what)
		}
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// config is for a driver of the daemon.
func (d *daemon) config() libvirt.Config {
	return libvirt.Config{Machine: "b01", Address: "unix://" + d.socket, Bridge: "br-vlan%d", Type: "qemu", CPUShare: 8,
		FCDevice: "/run/libvirt/fc-{wwpn}-lun-{lun}"}
}

func open(t *testing.T, c libvirt.Config) *libvirt.Host {
	t.Helper()
	h, err := libvirt.New(c)
	check(t, err)
	return h
}

// run asks libvirtd by its own client.
func (d *daemon) run(t testing.TB, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "virsh", append([]string{"-q", "-c", d.virsh}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("virsh %v: %v: %s", args, err, &stderr)
	}
	return string(out)
}

// running lists the domains that run, as virsh sees them.
func (d *daemon) running(t testing.TB) []string {
	names := strings.Fields(d.run(t, "list", "--name"))
	slices.Sort(names)
	return names
}

// starts counts the QEMUs that libvirtd has ever started, by its logs.
func (d *daemon) starts(t testing.TB) int {
	logs, err := filepath.Glob(filepath.Join(d.dir, "log", "qemu", "*.log"))
	check(t, err)
	n := 0
	for _, l := range logs {
		text, err := os.ReadFile(l)
		check(t, err)
		n += strings.Count(string(text), "starting up libvirt version")
	}
	return n
}

// foreign defines a domain as other tools do.
func (d *daemon) foreign(t *testing.T, s driver.Spec, running bool) {
	var nics strings.Builder
	for _, n := range s.NICs {
		fmt.Fprintf(&nics, `<interface type='bridge'><mac address='%s'/><source bridge='br-vlan%d'/></interface>`, n.MAC, n.VLAN)
	}
	text := fmt.Sprintf(`<domain type='qemu'><name>%s</name><uuid>%s</uuid><memory unit='MiB'>%d</memory><vcpu>%d</vcpu>
<os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features><devices>%s</devices></domain>`, s.Name, s.UUID, s.MemoryMiB, s.CPUs, &nics)
	f := filepath.Join(d.dir, s.Name+".xml")
	check(t, os.WriteFile(f, []byte(text), 0o600))
	d.run(t, "define", f)
	if running && s.MemoryMiB < 1<<20 { // what no machine has stays a definition, and counts the same
		d.run(t, "start", s.Name)
	}
}
