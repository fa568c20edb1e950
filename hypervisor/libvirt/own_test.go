package libvirt_test

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/hypervisor/hypervisortest"
	"rerack.dev/rerack/hypervisor/libvirt"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/pki"
)

func TestConfig(t *testing.T) {
	good := libvirt.Config{Machine: "b01", Address: "unix:///run/libvirt/libvirt-sock", Bridge: "br-vlan%d"}
	check(t, good.Validate())
	for key, spoil := range map[string][]func(*libvirt.Config){
		"machine": {func(c *libvirt.Config) { c.Machine = "" }},
		"address": {func(c *libvirt.Config) { c.Address = "" }, func(c *libvirt.Config) { c.Address = "tcp://b01" },
			func(c *libvirt.Config) { c.Address = "unix:relative" }, func(c *libvirt.Config) { c.Address = "tls://user@b01" }},
		"tls": {func(c *libvirt.Config) { c.Address = "tls://b01" },
			func(c *libvirt.Config) { c.Address, c.TLS = "tls://b01", &tls.Config{MinVersion: tls.VersionTLS12} }},
		"bridge": {func(c *libvirt.Config) { c.Bridge = "" }, func(c *libvirt.Config) { c.OVS = "br-int" },
			func(c *libvirt.Config) { c.Bridge = "br0" }, func(c *libvirt.Config) { c.Bridge = "br%d%d" }},
		"fcDevice":      {func(c *libvirt.Config) { c.FCDevice = "/dev/x-{wwpn}" }, func(c *libvirt.Config) { c.FCDevice = "x-{wwpn}-{lun}" }},
		"type":          {func(c *libvirt.Config) { c.Type = "xen" }},
		"cpuShare":      {func(c *libvirt.Config) { c.CPUShare = -1 }},
		"reserveMiB":    {func(c *libvirt.Config) { c.ReserveMiB = -1 }},
		"readTimeout":   {func(c *libvirt.Config) { c.ReadTimeout = -1 }},
		"changeTimeout": {func(c *libvirt.Config) { c.ChangeTimeout = -1 }},
		"lockBroken":    {func(c *libvirt.Config) { c.LockBroken = time.Second }},
	} {
		for i, f := range spoil {
			c := good
			f(&c)
			if _, err := libvirt.New(c); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), key) {
				t.Errorf("%s, case %d: %v", key, i, err)
			}
		}
	}
}

// The secret that the target asks for reaches QEMU, and no answer of libvirtd's has it.
func TestWrongSecret(t *testing.T) {
	d := start(t, setup{volumes: true})
	h := open(t, d.config())
	s := whole(t)
	s.Disks[1].ISCSI.CHAP.Secret = "not the one"
	check(t, h.Define(t.Context(), s))
	if err := h.Start(t.Context(), s.Name, s.Epoch); err == nil {
		t.Fatal("a VM runs whose target was to refuse it")
	}
	for _, id := range strings.Fields(d.run(t, "secret-list")) {
		if len(id) == 36 && strings.Contains(d.run(t, "secret-dumpxml", id), "not the one") {
			t.Errorf("secret object %s tells", id)
		}
	}
	if text := d.run(t, "dumpxml", "--security-info", s.Name); strings.Contains(text, "not the one") {
		t.Error("the domain tells")
	}
	s.Disks[1].ISCSI.CHAP.Secret = "correct-horse"
	s.Epoch++
	check(t, h.Define(t.Context(), s))
	check(t, h.Start(t.Context(), s.Name, s.Epoch))
	check(t, h.Stop(t.Context(), s.Name, s.Epoch))
	check(t, h.Undefine(t.Context(), s.Name, s.Epoch))
	if left := d.run(t, "secret-list"); strings.Contains(left, "rerack chap") || strings.Contains(left, "rerack lock") || strings.Count(left, "rerack epoch") != 1 {
		t.Errorf("left behind:\n%s", left)
	}
}

// Marks and the draining of a host are in libvirtd's files and not in its memory; a clone is not ours.
func TestDurable(t *testing.T) {
	d := start(t, setup{})
	h := open(t, d.config())
	s := hypervisortest.Spec("db1", 1, 7)
	check(t, h.Define(t.Context(), s))
	clone := strings.NewReplacer("<name>db1</name>", "<name>db2</name>", s.UUID, hypervisortest.Spec("", 2, 0).UUID,
		s.NICs[0].MAC, "02:00:00:00:00:02").Replace(d.run(t, "dumpxml", "db1"))
	// The clone keeps what the original says of itself.
	clone = strings.Replace(clone, `uuid="`+hypervisortest.Spec("", 2, 0).UUID, `uuid="`+s.UUID, 1)
	f := filepath.Join(d.dir, "clone.xml")
	check(t, os.WriteFile(f, []byte(clone), 0o600))
	d.run(t, "define", f)
	if err := h.Undefine(t.Context(), "db2", 9); !fault.Is(err, fault.Unsafe) {
		t.Errorf("a clone: %v", err)
	}
	check(t, h.Undefine(t.Context(), "db1", 8))
	check(t, h.Drain(t.Context()))
	files, err := filepath.Glob(filepath.Join(d.dir, "etc", "secrets", "*.xml"))
	check(t, err)
	var all strings.Builder
	for _, f := range files {
		text, err := os.ReadFile(f)
		check(t, err)
		all.Write(text)
	}
	if len(files) != 2 || !strings.Contains(all.String(), "rerack epoch db1 8") || !strings.Contains(all.String(), "rerack drain") {
		t.Errorf("%d files: %s", len(files), &all)
	}
}

// A change that never ended keeps others out, until it must be dead.
func TestLockOfTheDead(t *testing.T) {
	d := start(t, setup{})
	c := d.config()
	c.ChangeTimeout, c.LockBroken = 300*time.Millisecond, 900*time.Millisecond
	f := filepath.Join(d.dir, "lock.xml")
	check(t, os.WriteFile(f, []byte(`<secret ephemeral='yes'><usage type='tls'><name>rerack lock</name></usage></secret>`), 0o600))
	d.run(t, "secret-define", f)
	h := open(t, c)
	began := time.Now()
	for {
		err := h.Stop(t.Context(), "db1", 1)
		if err == nil {
			break
		}
		if !fault.Is(err, fault.Busy) && !fault.Is(err, fault.Timeout) {
			t.Fatal(err)
		}
		if time.Since(began) > 20*time.Second {
			t.Fatal("it is never broken")
		}
	}
	if took := time.Since(began); took < c.LockBroken {
		t.Errorf("broken after %s", took)
	}
}

// Over TLS both sides show who they are.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	ca, err := pki.Open(filepath.Join(dir, "ca"))
	check(t, err)
	server, err := ca.Server("127.0.0.1")
	check(t, err)
	save := func(name, kind string, der []byte) {
		check(t, os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	check(t, os.WriteFile(filepath.Join(dir, "ca.pem"), ca.PEM(), 0o600))
	save("cert.pem", "CERTIFICATE", server.Certificate[0])
	key, err := x509.MarshalECPrivateKey(server.PrivateKey.(*ecdsa.PrivateKey))
	check(t, err)
	save("key.pem", "EC PRIVATE KEY", key)
	l, err := net.Listen("tcp", "127.0.0.1:0") // a port that is free
	check(t, err)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	check(t, l.Close())
	d := start(t, setup{tls: port, pki: dir})
	client, err := ca.Client("rerack")
	check(t, err)
	c := d.config()
	c.Address, c.TLS = "tls://127.0.0.1:"+port, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: ca.Pool(), Certificates: []tls.Certificate{client}}
	h := open(t, c)
	await(t, "TLS", func() bool { _, err = h.VMs(t.Context()); return !fault.Is(err, fault.Unreachable) })
	check(t, err)
	check(t, h.Define(t.Context(), hypervisortest.Spec("db1", 1, 5)))
	if vms, err := open(t, d.config()).VMs(t.Context()); err != nil || len(vms) != 1 {
		t.Errorf("%v, %v", vms, err)
	}
	other, err := pki.Open(filepath.Join(dir, "other"))
	check(t, err)
	stranger, err := other.Client("rerack")
	check(t, err)
	for what, cfg := range map[string]*tls.Config{
		"a host of another authority": {MinVersion: tls.VersionTLS12, RootCAs: other.Pool(), Certificates: []tls.Certificate{client}},
		"a caller of another one":     {MinVersion: tls.VersionTLS12, RootCAs: ca.Pool(), Certificates: []tls.Certificate{stranger}},
	} {
		c.TLS = cfg
		if _, err := open(t, c).VMs(t.Context()); !fault.Is(err, fault.Unauthorized) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A server that is none gets no memory and no time.
func TestHostileServer(t *testing.T) {
	for what, answer := range map[string]string{"a length that is too large": "\xff\xff\xff\xff", "one that is too small": "\x00\x00\x00\x05abc",
		"no protocol": "HTTP/1.1 400 Bad Request\r\n\r\n", "silence": ""} {
		t.Run(what, func(t *testing.T) {
			l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
			check(t, err)
			done := make(chan struct{})
			go func() {
				defer close(done)
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				_, _ = c.Write([]byte(answer))
				_, _ = c.Read(make([]byte, 1<<16))
				_, _ = c.Read(make([]byte, 1<<16)) // until the driver gives up
			}()
			h := open(t, libvirt.Config{Machine: "b01", Address: "unix://" + l.Addr().String(), Bridge: "br%d", ReadTimeout: 500 * time.Millisecond})
			if vms, err := h.VMs(t.Context()); !fault.Is(err, fault.Unreachable) && !fault.Is(err, fault.Timeout) || vms != nil {
				t.Errorf("%v, %v", vms, err)
			}
			check(t, l.Close())
			<-done
		})
	}
}
