package lab

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"rerack.dev/rerack/orchestrator/topology"
)

func TestParseParams(t *testing.T) {
	got, err := parseParams("console=ttyS0 quiet rerack.phonehome=http://127.0.0.1:8080/boot/x/phone-home rerack.workload=db1 " +
		"rerack.epoch=7 rerack.initiator=iqn.2026-01.org.example:host-db1 rerack.client=boss " +
		"rerack.volume.10=fc:50:0a:09:81:00:00:00:01:3:db1 rerack.volume.2=iscsi:127.7.3.1:3260:iqn.2026-01.org.example:mail:1:4")
	if err != nil {
		t.Fatal(err)
	}
	want := params{PhoneHome: "http://127.0.0.1:8080/boot/x/phone-home", Workload: "db1", Epoch: 7, Client: "boss",
		Initiator: "iqn.2026-01.org.example:host-db1", Volumes: []disk{
			{ISCSI: true, Portal: netip.MustParseAddrPort("127.7.3.1:3260"), Target: "iqn.2026-01.org.example:mail:1", LUN: 4},
			{Volume: "db1", Target: "50:0a:09:81:00:00:00:01", LUN: 3}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestParseParamsRefuses(t *testing.T) {
	for _, bad := range []string{"rerack.epoch=-1", "rerack.phonehome=ftp://x/", "rerack.volume.x=fc:a:1:v",
		"rerack.volume.0=fc:1:v", "rerack.volume.0=iscsi:nowhere:iqn.x:1", "rerack.volume.0=iscsi:127.0.0.1:1:iqn.x:-1",
		"rerack.volume.0=nvme:a:b:c", "rerack.volume.0=fc", strings.Repeat("x", maxCmdline+1)} {
		if _, err := parseParams(bad); err == nil {
			t.Errorf("%.60q was taken", bad)
		}
	}
}

func FuzzParseParams(f *testing.F) {
	f.Add("rerack.volume.1=iscsi:127.0.0.1:3260:iqn.2026-01.org.example:a:0 rerack.epoch=1")
	f.Add("rerack.volume.1=fc:50:0a:1:v rerack.workload=x")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parseParams(s)
		if err == nil && (len(p.Volumes) > maxVolumes || len(s) > maxCmdline) {
			t.Error("limits do not hold")
		}
		for _, d := range p.Volumes {
			if err == nil && (d.LUN < 0 || d.ISCSI != d.Portal.IsValid()) {
				t.Errorf("disk %+v", d)
			}
		}
	})
}

func TestStampRoundTrip(t *testing.T) {
	in := stamp{Machine: "a01", VM: "db1", Workload: "db1", Epoch: 3, Sequence: 9}
	b, err := in.block()
	if err != nil || len(b) != blockSize {
		t.Fatal(len(b), err)
	}
	if out, ok := readStamp(b); !ok || out != in {
		t.Errorf("got %+v, %v", out, ok)
	}
	if _, ok := readStamp(make([]byte, blockSize)); ok {
		t.Error("zeros are no stamp")
	}
	in.Workload = strings.Repeat("x", blockSize)
	if _, err := in.block(); err == nil {
		t.Error("a name longer than a block was rendered")
	}
}

func FuzzReadStamp(f *testing.F) {
	b, err := stamp{Machine: "a", Workload: "w", Epoch: 1}.block()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, ok := readStamp(b); ok && (s.Machine == "" || s.Workload == "" || len(b) < blockSize) {
			t.Errorf("%+v from %d bytes", s, len(b))
		}
	})
}

func TestAddressesOnLoopback(t *testing.T) {
	l := &Lab{}
	for declared, want := range map[string]string{
		"https://127.8.1.1:8443": "127.8.1.1:8443", "tcp:127.7.0.1:6640": "127.7.0.1:6640", "127.7.3.1:3260": "127.7.3.1:3260",
		"https://127.8.1.1": "127.0.0.1:0", "https://10.0.9.17:443": "127.0.0.1:0", "bmc17.example.org": "127.0.0.1:0",
		"unix:/run/tgt/socket.0": "127.0.0.1:0", "": "127.0.0.1:0",
	} {
		if got := l.address(declared); got != want {
			t.Errorf("%q: %s, want %s", declared, got, want)
		}
	}
	l.cfg.FreePorts = true
	if got := l.address("https://127.8.1.1:8443"); got != "127.0.0.1:0" {
		t.Errorf("with FreePorts: %s", got)
	}
}

func TestStorageAddressesMoveToLoopback(t *testing.T) {
	topo := topology.New()
	for name, a := range map[string]string{"m1": "10.0.0.1", "m2": "127.10.0.1", "m3": "2001:db8::1", "m4": ""} {
		m := topology.Machine{Meta: topology.Meta{Name: name}}
		if a != "" {
			m.Spec.StorageAddress = netip.MustParseAddr(a)
		}
		topo.Machines[name] = m
	}
	useLoopback(topo)
	got := []string{}
	for _, m := range topo.Names(topology.KindMachine) {
		got = append(got, topo.Machines[m].Spec.StorageAddress.String())
	}
	if want := []string{"127.10.0.2", "127.10.0.1", "127.10.0.3", "invalid IP"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
