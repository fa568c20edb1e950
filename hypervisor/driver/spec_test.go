package driver_test

import (
	"reflect"
	"strings"
	"testing"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

func whole() driver.Spec {
	return driver.Spec{Name: "db1", UUID: "8fbf43ac-18d1-4480-82ce-5095cffe1059", CPUs: 2, MemoryMiB: 2048, Arch: "x86_64", Firmware: "uefi", Epoch: 7,
		NICs: []driver.NIC{{MAC: "02:00:00:00:00:07", VLAN: 120}, {MAC: "02:00:00:00:00:08", VLAN: 121}},
		Disks: []driver.Disk{{Volume: "root", Boot: true, ISCSI: &driver.ISCSI{Portal: "192.0.2.1:3260", Target: "iqn.2026-01.org.example:db1", LUN: 1}},
			{Volume: "data", FC: &driver.FC{WWPN: "50:06:01:60:3b:20:11:aa", LUN: 3}}}}
}

func TestValidate(t *testing.T) {
	for field, spoil := range map[string][]func(*driver.Spec){
		"VM name": {func(s *driver.Spec) { s.Name = "" }, func(s *driver.Spec) { s.Name = "DB1" }, func(s *driver.Spec) { s.Name = "-db1" },
			func(s *driver.Spec) { s.Name = "a/b" }, func(s *driver.Spec) { s.Name = ".." }, func(s *driver.Spec) { s.Name = "db1\n" },
			func(s *driver.Spec) { s.Name = strings.Repeat("a", 64) }},
		"uuid": {func(s *driver.Spec) { s.UUID = "" }, func(s *driver.Spec) { s.UUID = "00000000-0000-0000-0000-000000000000" },
			func(s *driver.Spec) { s.UUID = strings.ReplaceAll(s.UUID, "-", "") }, func(s *driver.Spec) { s.UUID += "\n" }},
		"cpus":      {func(s *driver.Spec) { s.CPUs = 0 }, func(s *driver.Spec) { s.CPUs = -1 }, func(s *driver.Spec) { s.CPUs = driver.MaxCPUs + 1 }},
		"memoryMiB": {func(s *driver.Spec) { s.MemoryMiB = 0 }, func(s *driver.Spec) { s.MemoryMiB = driver.MaxMemoryMiB + 1 }},
		"arch":      {func(s *driver.Spec) { s.Arch = "" }, func(s *driver.Spec) { s.Arch = "amd64" }},
		"firmware":  {func(s *driver.Spec) { s.Firmware = "" }, func(s *driver.Spec) { s.Firmware = "coreboot" }},
		"epoch":     {func(s *driver.Spec) { s.Epoch = 0 }},
		"nics":      {func(s *driver.Spec) { s.NICs = make([]driver.NIC, 65) }},
		"mac": {func(s *driver.Spec) { s.NICs[0].MAC = "" }, func(s *driver.Spec) { s.NICs[0].MAC = "01:00:00:00:00:07" },
			func(s *driver.Spec) { s.NICs[0].MAC = "00:00:00:00:00:00" }, func(s *driver.Spec) { s.NICs[0].MAC = "02:00:00:00:00:0A" },
			func(s *driver.Spec) { s.NICs[0].MAC = "020000000007" }, func(s *driver.Spec) { s.NICs[0].MAC = s.NICs[1].MAC }},
		"vlan":  {func(s *driver.Spec) { s.NICs[1].VLAN = 0 }, func(s *driver.Spec) { s.NICs[1].VLAN = 4095 }, func(s *driver.Spec) { s.NICs[1].VLAN = -1 }},
		"disks": {func(s *driver.Spec) { s.Disks = make([]driver.Disk, 257) }, func(s *driver.Spec) { s.Disks[1].Boot = true }},
		"volume": {func(s *driver.Spec) { s.Disks[0].Volume = "" }, func(s *driver.Spec) { s.Disks[0].Volume = "../etc" },
			func(s *driver.Spec) { s.Disks[0].Volume = "data" }, func(s *driver.Spec) { s.Disks[0].ISCSI = nil },
			func(s *driver.Spec) { s.Disks[0].FC = s.Disks[1].FC },
			func(s *driver.Spec) { s.Disks[0].ISCSI, s.Disks[0].FC = nil, s.Disks[1].FC }}, // one LUN twice
		"portal": {func(s *driver.Spec) { s.Disks[0].ISCSI.Portal = "192.0.2.1" }, func(s *driver.Spec) { s.Disks[0].ISCSI.Portal = ":3260" },
			func(s *driver.Spec) { s.Disks[0].ISCSI.Portal = "0.0.0.0:3260" }, func(s *driver.Spec) { s.Disks[0].ISCSI.Portal = "san:0" },
			func(s *driver.Spec) { s.Disks[0].ISCSI.Portal = "san:65536" }, func(s *driver.Spec) { s.Disks[0].ISCSI.Portal = "a b:3260" },
			func(s *driver.Spec) { s.Disks[0].ISCSI.Portal = "san,1:3260" }},
		"target": {func(s *driver.Spec) { s.Disks[0].ISCSI.Target = "" }, func(s *driver.Spec) { s.Disks[0].ISCSI.Target = "db1" },
			func(s *driver.Spec) { s.Disks[0].ISCSI.Target = "iqn.2026-01.org.example:a b" },
			func(s *driver.Spec) { s.Disks[0].ISCSI.Target = "iqn." + strings.Repeat("x", 220) }},
		"wwpn": {func(s *driver.Spec) { s.Disks[1].FC.WWPN = "" }, func(s *driver.Spec) { s.Disks[1].FC.WWPN = "00:00:00:00:00:00:00:00" },
			func(s *driver.Spec) { s.Disks[1].FC.WWPN = "50:06:01:60:3B:20:11:AA" }},
		"lun": {func(s *driver.Spec) { s.Disks[0].ISCSI.LUN = -1 }, func(s *driver.Spec) { s.Disks[0].ISCSI.LUN = 16384 },
			func(s *driver.Spec) { s.Disks[1].FC.LUN = -1 }, func(s *driver.Spec) { s.Disks[1].FC.LUN = 16384 }},
	} {
		for i, f := range spoil {
			s := whole()
			f(&s)
			if err := s.Validate(); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), field) {
				t.Errorf("%s, case %d: %v", field, i, err)
			}
		}
	}
	for what, change := range map[string]func(*driver.Spec){
		"as it is":     func(*driver.Spec) {},
		"bare":         func(s *driver.Spec) { s.NICs, s.Disks = nil, nil },
		"upper UUID":   func(s *driver.Spec) { s.UUID = strings.ToUpper(s.UUID) },
		"IPv6 portal":  func(s *driver.Spec) { s.Disks[0].ISCSI.Portal = "[2001:db8::1]:3260" },
		"named portal": func(s *driver.Spec) { s.Disks[0].ISCSI.Portal = "san-1.example.org:3260" },
		"most":         func(s *driver.Spec) { s.CPUs, s.MemoryMiB, s.Epoch = driver.MaxCPUs, driver.MaxMemoryMiB, 1<<64-1 },
	} {
		s := whole()
		change(&s)
		if err := s.Validate(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestEqual changes every field there is, so that a new one cannot be forgotten.
func TestEqual(t *testing.T) {
	if a, b := whole(), whole(); !a.Equal(b) || !a.Equal(a.Clone()) {
		t.Error("not equal to itself")
	}
	changed := 0
	var walk func(at string, pick func(*driver.Spec) reflect.Value)
	walk = func(at string, pick func(*driver.Spec) reflect.Value) {
		s := whole()
		v := pick(&s)
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				walk(at+"."+v.Type().Field(i).Name, func(s *driver.Spec) reflect.Value { return pick(s).Field(i) })
			}
			return
		case reflect.Slice:
			for i := range v.Len() {
				walk(at, func(s *driver.Spec) reflect.Value { return pick(s).Index(i) })
			}
			v.Set(v.Slice(0, v.Len()-1))
		case reflect.Pointer:
			if v.IsNil() {
				v.Set(reflect.New(v.Type().Elem()))
				break
			}
			walk(at, func(s *driver.Spec) reflect.Value { return pick(s).Elem() })
			v.SetZero()
		case reflect.String:
			v.SetString(v.String() + "x")
		case reflect.Int, reflect.Int64:
			v.SetInt(v.Int() + 1)
		case reflect.Uint64:
			v.SetUint(v.Uint() + 1)
		case reflect.Bool:
			v.SetBool(!v.Bool())
		default:
			t.Fatalf("%s is a %s", at, v.Kind())
		}
		changed++
		if hint := at == "Spec.Virtio"; s.Equal(whole()) != hint || whole().Equal(s) != hint {
			t.Errorf("%s: equal %v", at, s.Equal(whole()))
		}
	}
	walk("Spec", func(s *driver.Spec) reflect.Value { return reflect.ValueOf(s).Elem() })
	if changed < 25 {
		t.Errorf("only %d changes were tried", changed)
	}
	s := whole()
	s.NICs[0], s.NICs[1] = s.NICs[1], s.NICs[0]
	if s.Equal(whole()) {
		t.Error("the order of NICs does not count")
	}
	s = whole()
	s.UUID = strings.ToUpper(s.UUID)
	if !s.Equal(whole()) {
		t.Error("the case of the UUID counts")
	}
}

func TestCloneSharesNothing(t *testing.T) {
	s := whole()
	c := s.Clone()
	c.NICs[0].VLAN, c.Disks[0].Volume, c.Disks[0].ISCSI.LUN, c.Disks[1].FC.LUN = 1, "x", 9, 9
	if !s.Equal(whole()) {
		t.Errorf("%+v", s)
	}
}

func TestShares(t *testing.T) {
	for what, c := range map[string]struct {
		vm   driver.VM
		want string
	}{
		"nothing":       {driver.VM{UUID: "8fbf43ac-18d1-4480-82ce-5095cffe1060"}, ""},
		"no identity":   {driver.VM{}, ""},
		"its UUID":      {driver.VM{UUID: strings.ToUpper(whole().UUID)}, "UUID"},
		"a defined one": {driver.VM{Spec: driver.Spec{UUID: whole().UUID}}, "UUID"},
		"a MAC":         {driver.VM{Spec: driver.Spec{NICs: []driver.NIC{{MAC: "02:00:00:00:00:09"}, {MAC: "02:00:00:00:00:08"}}}}, "MAC 02:00:00:00:00:08"},
	} {
		if got := whole().Shares(c.vm); !strings.HasPrefix(got, c.want) || (got == "") != (c.want == "") {
			t.Errorf("%s: %q", what, got)
		}
	}
}
