package tgtsim_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/iscsi"
	"rerack.dev/rerack/sanzoning/maskingtest"
	"rerack.dev/rerack/sanzoning/tgtsim"
)

const (
	volume = "iqn.2026-01.dev.rerack:vol-1"
	host   = "iqn.2026-01.dev.rerack:host-a"
	from   = "127.9.0.1"
)

// world remembers writes.
type world struct {
	mu     sync.Mutex
	writes []string
}

func (*world) Rules(string, []string)               {}
func (*world) Session(string, iscsi.Identity, bool) {}
func (w *world) Wrote(x tgtsim.Write) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writes = append(w.writes, fmt.Sprintf("%s %s %s %d %d", x.Volume, x.By.Address, x.By.Name, x.LBA, len(x.Data)))
}

func start(t *testing.T, cfg tgtsim.Config) (*tgtsim.Sim, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sim")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cfg.Socket = filepath.Join(dir, "ipc.7")
	s, err := tgtsim.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, filepath.Join(dir, "ipc")
}

func login(t *testing.T, s *tgtsim.Sim, a iscsi.Account) (*iscsi.Session, error) {
	t.Helper()
	return iscsi.Login(t.Context(), maskingtest.Dial(t, s.Portal(), from), iscsi.Params{Initiator: host, Target: volume, Account: a})
}

// TestTgtadm: the real tgtadm works against the simulator as against tgtd.
func TestTgtadm(t *testing.T) {
	path := maskingtest.Peer(t, "tgtadm")
	s, ipc := start(t, tgtsim.Config{})
	run := func(ok bool, args ...string) string {
		t.Helper()
		cmd := exec.Command(path, append([]string{"-C", "7", "--lld", "iscsi"}, args...)...)
		cmd.Env = append(os.Environ(), "TGT_IPC_SOCKET="+ipc)
		out, err := cmd.CombinedOutput()
		if (err == nil) != ok {
			t.Fatalf("tgtadm %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	run(true, "--mode", "target", "--op", "new", "--tid", "1", "-T", volume)
	run(false, "--mode", "target", "--op", "new", "--tid", "1", "-T", volume)
	run(true, "--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", "1", "-b", "/var/lib/disk.img")
	run(true, "--mode", "account", "--op", "new", "--user", "u", "--password", "a-secret-of-16-b")
	run(true, "--mode", "account", "--op", "bind", "--tid", "1", "--user", "u")
	run(true, "--mode", "target", "--op", "bind", "--tid", "1", "-I", from)
	if out := run(false, "--mode", "target", "--op", "bind", "--tid", "1", "-I", from); !strings.Contains(out, "already exists") {
		t.Fatalf("bound twice: %s", out)
	}
	run(true, "--mode", "target", "--op", "bind", "--tid", "1", "-Q", "iqn.2026-01.x:y")
	if _, err := login(t, s, iscsi.Account{}); !fault.Is(err, fault.Unauthorized) {
		t.Fatalf("without the account: %v", err)
	}
	sess, err := login(t, s, iscsi.Account{User: "u", Secret: "a-secret-of-16-b"})
	if err != nil {
		t.Fatal(err)
	}
	defer sess.Close()
	show := run(true, "--mode", "target", "--op", "show")
	for _, want := range []string{"Target 1: " + volume, "I_T nexus: 1", "IP Address: " + from, "/var/lib/disk.img", "        " + from, "        iqn.2026-01.x:y"} {
		if !strings.Contains(show, want) {
			t.Fatalf("%q is not in:\n%s", want, show)
		}
	}
	if out := run(true, "--mode", "conn", "--op", "show", "--tid", "1"); !strings.Contains(out, "Session: 1") {
		t.Fatalf("connections: %s", out)
	}
	run(true, "--mode", "target", "--op", "unbind", "--tid", "1", "-I", from)
	if err := sess.WriteBlock(t.Context(), 1, 0, make([]byte, 512)); err != nil {
		t.Fatalf("a rule withdrawn touched a live session, as it does not in tgt: %v", err)
	}
	run(true, "--mode", "conn", "--op", "delete", "--tid", "1", "--sid", "1", "--cid", "0")
	if err := sess.WriteBlock(t.Context(), 1, 0, make([]byte, 512)); err == nil {
		t.Fatal("a write over a deleted connection")
	}
	run(true, "--mode", "target", "--op", "delete", "--tid", "1", "--force")
}

// TestSameTextAsTgtd: both describe the same configuration with the same words.
func TestSameTextAsTgtd(t *testing.T) {
	path := maskingtest.Peer(t, "tgtadm")
	real := maskingtest.StartTgtd(t)
	_, ipc := start(t, tgtsim.Config{})
	texts := map[string]string{}
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 64<<20); err != nil {
		t.Fatal(err)
	}
	for name, socket := range map[string]string{"tgtd": strings.TrimSuffix(real.Socket, ".7"), "simulator": ipc} {
		for _, args := range []string{"--mode target --op new --tid 4 -T " + volume, "--mode logicalunit --op new --tid 4 --lun 1 -b " + disk,
			"--mode target --op bind --tid 4 -I 10.0.0.1", "--mode target --op show"} {
			cmd := exec.Command(path, append([]string{"-C", "7", "--lld", "iscsi"}, strings.Fields(args)...)...)
			cmd.Env = append(os.Environ(), "TGT_IPC_SOCKET="+socket)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%s: %s: %v: %s", name, args, err, out)
			}
			texts[name] = string(out)
		}
	}
	if texts["tgtd"] != texts["simulator"] {
		t.Fatalf("tgtd:\n%s\nsimulator:\n%s", texts["tgtd"], texts["simulator"])
	}
}

func TestWorldSeesWrites(t *testing.T) {
	w := &world{}
	s, _ := start(t, tgtsim.Config{Backend: w})
	if err := s.AddVolume(tgtsim.Volume{Target: volume, Rules: []string{"127.9.0.0/16"}}); err != nil {
		t.Fatal(err)
	}
	sess, err := login(t, s, iscsi.Account{})
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("rerack! "), 64*20) // over page borders
	if err := sess.WriteBlock(t.Context(), 1, 5, data); err != nil {
		t.Fatal(err)
	}
	if err := sess.Logout(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%s %s %s 5 %d", volume, from, host, len(data))
	if len(w.writes) != 1 || w.writes[0] != want {
		t.Fatalf("writes %v, want %s", w.writes, want)
	}
	s.Restart() // the disk stays, the configuration does not
	if _, err := login(t, s, iscsi.Account{}); !fault.Is(err, fault.NotFound) {
		t.Fatalf("got %v", err)
	}
	if err := s.AddVolume(tgtsim.Volume{Target: volume, Rules: []string{"ALL"}}); err != nil {
		t.Fatal(err)
	}
	if sess, err = login(t, s, iscsi.Account{}); err != nil {
		t.Fatal(err)
	}
	defer sess.Close()
	for i := range len(data) / 512 {
		got, err := sess.ReadBlock(t.Context(), 1, uint32(5+i))
		if err != nil || !bytes.Equal(got, data[i*512:(i+1)*512]) {
			t.Fatalf("block %d: %v", i, err)
		}
	}
}

func TestPersistentRestart(t *testing.T) {
	s, _ := start(t, tgtsim.Config{Persistent: true})
	if err := s.AddVolume(tgtsim.Volume{Target: volume, Rules: []string{from}}); err != nil {
		t.Fatal(err)
	}
	first, err := login(t, s, iscsi.Account{})
	if err != nil {
		t.Fatal(err)
	}
	s.Restart()
	if len(s.Sessions()) != 0 || first.Ping(t.Context()) == nil {
		t.Fatal("a session outlived the restart")
	}
	again, err := login(t, s, iscsi.Account{})
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
}

func TestManyVolumes(t *testing.T) {
	s, _ := start(t, tgtsim.Config{})
	for i := range 500 {
		if err := s.AddVolume(tgtsim.Volume{Target: fmt.Sprintf("%s%d", volume, i), Size: 1 << 40, Rules: []string{from}}); err != nil {
			t.Fatal(err)
		}
	}
	sess, err := iscsi.Login(t.Context(), maskingtest.Dial(t, s.Portal(), from), iscsi.Params{Initiator: host})
	if err != nil {
		t.Fatal(err)
	}
	defer sess.Close()
	names, err := sess.Targets(t.Context())
	if err != nil || len(names) != 500 {
		t.Fatalf("%d targets, %v", len(names), err)
	}
}
