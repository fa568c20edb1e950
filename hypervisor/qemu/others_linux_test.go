package qemu

import (
	"strings"
	"testing"

	"rerack.dev/rerack/hypervisor/driver"
)

func TestParseCmdline(t *testing.T) {
	for line, want := range map[string]driver.VM{
		"/usr/bin/qemu-system-x86_64 -m 2G -smp cores=2,cpus=4 -uuid 8FBF43AC-18d1-4480-82ce-5095cffe1059 -name web1,debug-threads=on": {
			Name: "web1", State: driver.StateRunning, UUID: "8fbf43ac-18d1-4480-82ce-5095cffe1059", Spec: driver.Spec{CPUs: 4, MemoryMiB: 2048, Arch: "x86_64"}},
		"qemu-system-aarch64 --name guest=a/b -S -m size=1048576k,slots=2": {Name: "pid-7", State: driver.StateDefined, Spec: driver.Spec{CPUs: 1, MemoryMiB: 128, Arch: "aarch64"}},
		"qemu-system-x86_64 -m 9999999999T -smp 0":                         {Name: "pid-7", State: driver.StateRunning, Spec: driver.Spec{CPUs: 1, MemoryMiB: 1 << 40, Arch: "x86_64"}},
		`qemu-system-x86_64 -device {"driver":"e1000","mac":"02:00:00:00:00:0A"} -device e1000,mac=02:00:00:00:00:0b -m`: {Name: "pid-7", State: driver.StateRunning,
			Spec: driver.Spec{CPUs: 1, MemoryMiB: 128, Arch: "x86_64", NICs: []driver.NIC{{MAC: "02:00:00:00:00:0a"}, {MAC: "02:00:00:00:00:0b"}}}},
	} {
		want.Spec.Name, want.Spec.UUID = want.Name, want.UUID
		got, ok := parseCmdline([]byte(strings.ReplaceAll(line, " ", "\x00")+"\x00"), "pid-7")
		if !ok || got.Name != want.Name || got.State != want.State || got.UUID != want.UUID || !got.Spec.Equal(want.Spec) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", line, got, want)
		}
	}
	for _, line := range []string{"", "/bin/sh", "qemu-img\x00-m\x001G"} {
		if vm, ok := parseCmdline([]byte(line), "x"); ok {
			t.Errorf("%q is taken for %+v", line, vm)
		}
	}
}

func FuzzParseCmdline(f *testing.F) {
	f.Add([]byte("/usr/bin/qemu-system-x86_64\x00-m\x002G\x00-smp\x004\x00-S\x00"))
	f.Add([]byte("qemu-system-x86_64\x00-m"))
	f.Add([]byte("qemu-system-x86_64\x00-device\x00{\"mac\" : \"\"}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		vm, ok := parseCmdline(b, "pid-1")
		if ok && (driver.CheckName(vm.Name) != nil || vm.Spec.CPUs < 1 || vm.Spec.CPUs > driver.MaxCPUs || vm.Spec.MemoryMiB < 1 || vm.Spec.MemoryMiB > 1<<40) {
			t.Fatalf("%+v", vm)
		}
	})
}
