package ipmi_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/bmctest"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/bmc/ipmi"
)

// chassisScript is what ipmi_sim calls as "get|set|check name [value]". State is in files beside it. It
// returns at once: ipmi_sim repeats slow calls.
const chassisScript = `#!/bin/sh
cd "$(dirname "$0")" || exit 1
op=$1; shift
case $op in
get) for n in "$@"; do case $n in
  power) echo "power:$(cat power)" ;;
  boot) echo "boot:$(cat boot)" ;;
  *) echo "$n:0" ;;
  esac; done ;;
set) while [ $# -gt 1 ]; do n=$1; v=$2; shift 2; echo "$n $v" >> presses; case $n in
  power) echo "$v" > power.new && mv power.new power ;;
  shutdown) echo 0 > power.new && mv power.new power ;;
  boot) echo "$v" > boot.new && mv boot.new boot ;;
  esac; done ;;
esac
exit 0
`

const lanConf = `name "rerack"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 %d
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid %s
  endlan
  chassis_control "%s"
  user 1 true "" "" user 10 none md2 md5 straight
  user 2 true "%s" "%s" admin 10 none md2 md5 straight
`

const emuConf = `mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
mc_enable 0x20
`

// openIPMI is a Peer over OpenIPMI's ipmi_sim.
type openIPMI struct {
	dir  string
	addr string
}

func simCredential(wrong bool) bmc.Credential {
	pw := "horse-battery"
	if wrong {
		pw = "wrong"
	}
	return bmc.Credential{User: "admin", Password: bmc.NewSecret(pw)}
}

func (o *openIPMI) Open(ctx context.Context, wrong bool) (driver.BMC, error) {
	return ipmi.Opener{}.Open(ctx, bmc.Endpoint{Address: o.addr}, simCredential(wrong))
}

func (o *openIPMI) file(t testing.TB, name string) string {
	raw, err := os.ReadFile(filepath.Join(o.dir, name))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(raw))
}

func (o *openIPMI) Truth(t testing.TB) driver.PowerState {
	if o.file(t, "power") == "1" {
		return driver.PowerOn
	}
	return driver.PowerOff
}

// Presses counts lines like "power 0": the boot setting is no press.
func (o *openIPMI) Presses(t testing.TB) int {
	n := 0
	for line := range strings.Lines(o.file(t, "presses")) {
		if !strings.HasPrefix(line, "boot") {
			n++
		}
	}
	return n
}

func startOpenIPMI(t *testing.T, on bool) bmctest.Peer {
	t.Helper()
	bin, err := exec.LookPath("ipmi_sim")
	if err != nil {
		if os.Getenv("RERACK_REQUIRE_PEERS") == "1" {
			t.Fatal("ipmi_sim is not installed (apt package openipmi)")
		}
		t.Skip("ipmi_sim is not installed (apt package openipmi)")
	}
	dir := t.TempDir()
	power := "0"
	if on {
		power = "1"
	}
	port := freeUDPPort(t)
	o := &openIPMI{dir: dir, addr: fmt.Sprintf("127.0.0.1:%d", port)}
	cred := simCredential(false)
	write := func(name, content string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("power", power, 0o600)
	write("boot", "none", 0o600)
	write("chassis.sh", chassisScript, 0o700)
	write("lan.conf", fmt.Sprintf(lanConf, port, simGUID, filepath.Join(dir, "chassis.sh"), cred.User, cred.Password.Reveal()), 0o600)
	write("sim.emu", emuConf, 0o600)

	var log bytes.Buffer
	cmd := exec.Command(bin, "-n", "-c", filepath.Join(dir, "lan.conf"), "-f", filepath.Join(dir, "sim.emu"), "-s", dir)
	cmd.Stdout, cmd.Stderr = &log, &log
	stdin, err := cmd.StdinPipe() // ipmi_sim ends when its stdin does
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() { _ = cmd.Wait(); close(gone) }() // the error is the kill
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Process.Kill()
		<-gone
		if t.Failed() {
			t.Logf("ipmi_sim said: %s", log.String())
		}
	})
	deadline := time.Now().Add(30 * time.Second)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		err := ipmi.Probe(ctx, ipmi.Config{Address: o.addr, AttemptTimeout: 100 * time.Millisecond})
		cancel()
		if err == nil {
			return o
		}
		select {
		case <-gone:
			t.Fatal("ipmi_sim ended")
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("ipmi_sim does not answer: %v", err)
		}
	}
}

func freeUDPPort(t *testing.T) int {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).Port
}

// simGUID is sent as it stands; simUUID is how the same bytes read in SMBIOS order.
const (
	simGUID = "44454c4c510010488052b4c04f4d3732"
	simUUID = "4c4c4544-0051-4810-8052-b4c04f4d3732"
)

// TestOpenIPMI runs the contract against a BMC that somebody else wrote. ipmi_sim takes boot flags and
// reads them back without the valid bit, which is what a BMC that reverted them looks like, and it knows
// no power restore policy.
func TestOpenIPMI(t *testing.T) {
	bmctest.Run(t, bmctest.Harness{
		New:       startOpenIPMI,
		Identity:  driver.Inventory{UUID: simUUID},
		NoBoot:    true,
		NoRestore: true,
	})
}

// TestOpenIPMIBoot looks at what reached the machine instead.
func TestOpenIPMIBoot(t *testing.T) {
	peer := startOpenIPMI(t, false).(*openIPMI)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	d, err := peer.Open(ctx, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Close(ctx); err != nil {
			t.Error(err)
		}
	}()
	for _, c := range []struct {
		set  driver.BootOverride
		want string
	}{{driver.BootOverride{Device: driver.BootPXE, Once: true}, "pxe"}, {driver.BootOverride{Device: driver.BootDisk, Once: true}, "default"},
		{driver.BootOverride{Device: driver.BootDefault}, "none"}} {
		if err := d.SetBoot(ctx, c.set); err != nil {
			t.Fatal(err)
		}
		if got := peer.file(t, "boot"); got != c.want {
			t.Errorf("%+v: ipmi_sim set boot %q, want %q", c.set, got, c.want)
		}
	}
}
