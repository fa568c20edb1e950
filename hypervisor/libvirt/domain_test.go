package libvirt

import (
	"reflect"
	"strings"
	"testing"

	"rerack.dev/rerack/hypervisor/driver"
)

func spec() driver.Spec {
	return driver.Spec{Name: "db1", UUID: "8fbf43ac-18d1-4480-82ce-5095cffe1059", CPUs: 2, MemoryMiB: 2048, Arch: "arm64", Firmware: "uefi", Epoch: 1<<64 - 1,
		NICs: []driver.NIC{{MAC: "02:00:00:00:00:07", VLAN: 4094}, {MAC: "02:00:00:00:00:08", VLAN: 1}},
		Disks: []driver.Disk{{Volume: "root", Boot: true, ISCSI: &driver.ISCSI{Portal: "[2001:db8::1]:3260", Target: "iqn.2026-01.org.example:db1", LUN: 0,
			CHAP: &driver.CHAP{Name: "san/db1", User: "db1", Secret: "canary"}}},
			{Volume: "data", FC: &driver.FC{WWPN: "50:06:01:60:3b:20:11:aa", LUN: 16383}}}}
}

// asRead is the text as libvirtd gives it back: memory in KiB.
func asRead(t testing.TB, c Config, s driver.Spec) string {
	t.Helper()
	text, err := c.domain(s)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Replace(text, `unit="MiB">2048<`, `unit="KiB">2097152<`, 1)
}

// What is written reads back, whichever way the host names its networks; it holds no secret.
func TestRoundTrip(t *testing.T) {
	for name, c := range map[string]Config{
		"bridges":      {Bridge: "br-vlan%d", Type: "kvm", FCDevice: "/dev/disk/by-path/pci-0000:3b:00.0-fc-0x{wwpn}-lun-{lun}"},
		"bridges, br":  {Bridge: "vlan%d.br", Type: "kvm", FCDevice: "/dev/{wwpn}{lun}"},
		"Open vSwitch": {OVS: "br-int", Type: "qemu", FCDevice: "/dev/x-{wwpn}-{lun}"},
	} {
		text := asRead(t, c, spec())
		if strings.Contains(text, "canary") {
			t.Errorf("%s: %s", name, text)
		}
		vm, err := c.parse(text)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want := spec()
		if !vm.Spec.Equal(want) || vm.Epoch != want.Epoch || !reflect.DeepEqual(vm.Spec, want.Public()) {
			t.Errorf("%s: %s", name, differs(want, vm.Spec))
		}
	}
}

// What a person changed is seen, and a copy is not ours.
func TestChangedByHand(t *testing.T) {
	c := Config{Bridge: "br-vlan%d", Type: "kvm", FCDevice: "/dev/x-{wwpn}-{lun}"}
	text := asRead(t, c, spec())
	for what, change := range map[string][2]string{
		"another bridge":      {"br-vlan4094", "br0"},
		"another CPU":         {"<vcpu>2", "<vcpu>3"},
		"another target":      {"iqn.2026-01.org.example:db1/0", "iqn.2026-01.org.example:other/0"},
		"another LUN":         {"/dev/x-500601603b2011aa-16383", "/dev/x-500601603b2011aa-1638"},
		"a disk of its own":   {"/dev/x-500601603b2011aa-16383", "/dev/sda"},
		"a volume of nobody":  {`volume="data"`, `volume="other"`},
		"a LUN that is none":  {"org.example:db1/0", "org.example:db1/00"},
		"an initiator of its": {`<source protocol="iscsi" name="iqn.2026-01.org.example:db1/0">`, `<source protocol="iscsi" name="iqn.2026-01.org.example:db1/0"><initiator><iqn name="iqn.x"/></initiator>`},
	} {
		changed := strings.Replace(text, change[0], change[1], 1)
		vm, err := c.parse(changed)
		if err != nil || changed == text || vm.Spec.Equal(spec()) || vm.Epoch == 0 {
			t.Errorf("%s: %+v, %v", what, vm, err)
		}
	}
	for what, change := range map[string][2]string{
		"a clone's name": {"<name>db1<", "<name>db2<"},
		"a clone's UUID": {"<uuid>8fbf43ac", "<uuid>8fbf43ad"},
		"no epoch":       {`epoch="18446744073709551615"`, `epoch="0"`},
		"other metadata": {"https://rerack.dev/libvirt/1", "https://example.org/1"},
	} {
		changed := strings.Replace(text, change[0], change[1], 1)
		vm, err := c.parse(changed)
		if err != nil || changed == text || vm.Epoch != 0 || vm.Spec.Epoch != 0 {
			t.Errorf("%s: %+v, %v", what, vm, err)
		}
	}
}

func TestDiskNames(t *testing.T) {
	for i, want := range map[int]string{0: "sda", 25: "sdz", 26: "sdaa", 27: "sdab", 255: "sdiv"} {
		if got := diskName(i); got != want {
			t.Errorf("%d: %s, want %s", i, got, want)
		}
	}
}

func TestMarks(t *testing.T) {
	if name, epoch, ok := marked(epochUsage("db1", 1<<64-1)); !ok || name != "db1" || epoch != 1<<64-1 {
		t.Error(name, epoch, ok)
	}
	for _, id := range []string{"", "rerack lock", "rerack epoch db1", "rerack epoch db1 ", "rerack epoch db1 x", "rerack epoch db1 1 ", "rerack epoch db1 01", "epoch db1 1"} {
		if name, epoch, ok := marked(id); ok {
			t.Errorf("%q is epoch %d of %s", id, epoch, name)
		}
	}
}

// Whatever a host says of a domain, it is read or refused; what is read as ours has our marks.
func FuzzParse(f *testing.F) {
	c := Config{Bridge: "br-vlan%d", Type: "kvm", FCDevice: "/dev/x-{wwpn}-{lun}"}
	f.Add(asRead(f, c, spec()))
	f.Add(asRead(f, Config{OVS: "br-vlan1", Type: "qemu", FCDevice: "/dev/{wwpn}{lun}"}, spec()))
	f.Add(`<domain><name>a</name><uuid>u</uuid><memory unit='KiB'>1</memory><vcpu placement='static'>1</vcpu><devices><disk type='block'><source dev='/dev/x-5'/></disk><interface type='user'/></devices></domain>`)
	f.Fuzz(func(t *testing.T, text string) {
		vm, err := c.parse(text)
		if err != nil {
			return
		}
		if vm.Name == "" || vm.Spec.CPUs < 1 || vm.Spec.MemoryMiB < 0 || vm.Epoch != vm.Spec.Epoch || vm.Epoch != 0 && !strings.Contains(text, "rerack") {
			t.Errorf("%+v", vm)
		}
	})
}
