package maskingtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"rerack.dev/rerack/sanzoning/iscsi"
	"rerack.dev/rerack/sanzoning/tgt/tgtadm"
)

// Peer finds a third-party program. Without it the test is skipped, or fails when
// RERACK_REQUIRE_PEERS=1.
func Peer(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("RERACK_REQUIRE_PEERS") == "1" {
		t.Fatalf("%s is not installed, and RERACK_REQUIRE_PEERS=1", name)
	}
	t.Skipf("%s is not installed", name)
	return ""
}

// Tgtd is a real tgtd, alone in a private folder. It ends with the test.
type Tgtd struct {
	Socket string // of its management
	Portal string // host:port of its iSCSI portal
	dir    string
	t      testing.TB
}

// StartTgtd starts a tgtd without targets.
func StartTgtd(t testing.TB) *Tgtd {
	t.Helper()
	path := Peer(t, "tgtd")
	dir, err := os.MkdirTemp("", "tgtd") // t.TempDir is too long for a socket's name
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	const control = "7"
	d := &Tgtd{Socket: filepath.Join(dir, "ipc") + "." + control, Portal: freePort(t), dir: dir, t: t}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, "-f", "-C", control, "--iscsi", "portal="+d.Portal)
	cmd.Env = append(os.Environ(), "TGT_IPC_SOCKET="+filepath.Join(dir, "ipc"))
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	t.Cleanup(func() { cancel(); <-exited })
	for start := time.Now(); ; {
		_, err := d.Try(tgtadm.Request{Mode: tgtadm.System, Op: tgtadm.Show})
		if err == nil {
			conn, dialErr := net.Dial("tcp", d.Portal)
			if dialErr == nil {
				_ = conn.Close()
				return d
			}
			err = dialErr
		}
		select {
		case <-exited:
			t.Fatalf("tgtd ended: %s", log.String())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Since(start) > 20*time.Second {
			t.Fatalf("tgtd does not answer: %v", err)
		}
	}
}

// AddVolume makes target tid with a disk of size bytes as LUN 1. Nobody may log in to it yet.
func (d *Tgtd) AddVolume(tid int32, iqn string, size int64, account iscsi.Account) {
	d.t.Helper()
	disk := filepath.Join(d.dir, fmt.Sprintf("%d.img", tid))
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Truncate(disk, size); err != nil {
		d.t.Fatal(err)
	}
	d.Must(tgtadm.Request{Mode: tgtadm.Target, Op: tgtadm.New, TID: tid, Params: "targetname=" + iqn})
	d.Must(tgtadm.Request{Mode: tgtadm.Device, Op: tgtadm.New, TID: tid, LUN: 1, Params: "path=" + disk})
	if account.User != "" {
		_, _ = d.Try(tgtadm.Request{Mode: tgtadm.AccountMode, Op: tgtadm.New, Params: "user=" + account.User + ",password=" + account.Secret})
		d.Must(tgtadm.Request{Mode: tgtadm.AccountMode, Op: tgtadm.Bind, TID: tid, Params: "user=" + account.User})
	}
}

// Must sends a management request that has to succeed.
func (d *Tgtd) Must(req tgtadm.Request) string {
	d.t.Helper()
	text, err := d.Try(req)
	if err != nil {
		d.t.Fatalf("tgtd %+v: %v", req, err)
	}
	return text
}

// Try sends a management request and returns the text of its answer.
func (d *Tgtd) Try(req tgtadm.Request) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := net.Dial("unix", d.Socket)
	if err != nil {
		return "", err
	}
	return tgtadm.Call(ctx, conn, req)
}

// freePort is a loopback port that nobody listens on now.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Dial connects to an iSCSI portal from a given source address, 127.x.y.z on loopback.
func Dial(t testing.TB, portal, from string) net.Conn {
	t.Helper()
	d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := d.Dial("tcp", portal)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}
