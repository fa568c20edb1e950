package ovssim_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/fabric/ovssim"
)

func sortStrings(v []any) {
	slices.SortFunc(v, func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
}

// ask sends one transaction and returns the answer's result, with UUIDs blanked.
func ask(t *testing.T, network, address, operations string) string {
	t.Helper()
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, `{"method":"transact","id":0,"params":["Open_vSwitch",%s]}`, operations)
	var answer struct {
		Result []map[string]any
		Error  any
	}
	if err := json.NewDecoder(bufio.NewReader(conn)).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	for _, r := range answer.Result {
		delete(r, "details") // free text, and what it is about
		delete(r, "syntax")
	}
	out, err := json.Marshal(answer)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestSameAnswersAsTheRealServer gives the simulator and a real ovsdb-server the same transactions, one
// after another, and compares what they say.
func TestSameAnswersAsTheRealServer(t *testing.T) {
	for _, tool := range []string{"ovsdb-server", "ovsdb-tool"} {
		_, err := exec.LookPath(tool)
		needs(t, tool, err)
	}
	sim, err := ovssim.Start(ovssim.Config{Ports: []ovssim.Port{{Name: "p1"}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sim.Close)
	sock := realServer(t)
	ask(t, "unix", sock, `{"op":"insert","table":"Interface","row":{"name":"p1"},"uuid-name":"i"},
		{"op":"insert","table":"Port","row":{"name":"p1","interfaces":["named-uuid","i"]},"uuid-name":"p"},
		{"op":"insert","table":"Bridge","row":{"name":"br0","ports":["named-uuid","p"]},"uuid-name":"b"},
		{"op":"insert","table":"Open_vSwitch","row":{"bridges":["named-uuid","b"]}}`)

	const p1 = `"table":"Port","where":[["name","==","p1"]]`
	wait := func(until, columns, row string) string {
		return `{"op":"wait",` + p1 + `,"timeout":0,"until":"` + until + `","columns":` + columns + `,"rows":[` + row + `]}`
	}
	update := func(row string) string { return `{"op":"update",` + p1 + `,"row":` + row + `}` }
	mutate := func(m string) string { return `{"op":"mutate",` + p1 + `,"mutations":[` + m + `]}` }
	show := `{"op":"select",` + p1 + `,"columns":["name","tag","trunks","vlan_mode","protected","external_ids"]}`
	for _, ops := range []string{
		show,
		wait("==", `["tag","trunks","external_ids"]`, `{"tag":["set",[]],"trunks":["set",[]],"external_ids":["map",[]]}`),
		wait("==", `["tag"]`, `{"tag":1}`),
		wait("!=", `["tag"]`, `{"tag":1}`),
		update(`{"trunks":["set",[30,20,30]]}`),
		update(`{"tag":10,"trunks":["set",[30,20]],"vlan_mode":"native-untagged","protected":true}`) + "," + show,
		wait("==", `["tag"]`, `{"tag":["set",[]]}`),
		wait("==", `["tag","trunks"]`, `{"tag":10,"trunks":["set",[20,30]]}`) + "," + update(`{"tag":11}`) + "," + show,
		wait("==", `["tag"]`, `{"tag":10}`) + "," + update(`{"tag":12}`) + "," + show, // refused as a whole
		show,
		update(`{"tag":4096}`),
		update(`{"tag":-1}`),
		update(`{"tag":["set",[1,2]]}`),
		update(`{"vlan_mode":"bogus"}`),
		update(`{"name":"p2"}`),
		update(`{"tag":13}`) + "," + update(`{"tag":5000}`), // the first is undone
		show,
		mutate(`["external_ids","insert",["map",[["a","1"],["b","2"]]]]`) + "," + show,
		mutate(`["external_ids","insert",["map",[["a","9"],["c","3"]]]]`) + "," + show, // keeps a
		mutate(`["external_ids","delete",["set",["a","nothing"]]],["external_ids","insert",["map",[["a","9"]]]]`) + "," + show,
		mutate(`["external_ids","delete",["map",[["a","8"],["b","2"]]]]`) + "," + show,
		wait("==", `["external_ids"]`, `{"external_ids":["map",[["c","3"],["a","9"]]]}`),
		wait("==", `["external_ids"]`, `{"external_ids":["map",[]]}`),
		`{"op":"select","table":"Port","where":[["name","!=","p1"],["name","!=","br0"]],"columns":["name"]}`,
		`{"op":"select","table":"Port","where":[["external_ids","includes",["map",[["a","9"]]]]],"columns":["name"]}`,
		`{"op":"select","table":"Port","where":[["tag","==",11],["name","==","p1"]],"columns":["name"]}`,
		`{"op":"update","table":"Port","where":[["name","==","nobody"]],"row":{"tag":1}}`,
		`{"op":"comment","comment":"hello"},{"op":"commit","durable":true}`,
		update(`{"tag":["set",[]],"trunks":["set",[]],"vlan_mode":["set",[]]}`) + "," + show,
	} {
		if mine, theirs := ask(t, "tcp", strings.TrimPrefix(sim.Endpoint(), "tcp:"), ops), ask(t, "unix", sock, ops); mine != theirs {
			t.Errorf("%s\nsimulator   %s\nreal server %s", ops, mine, theirs)
		}
	}
}

func realServer(t *testing.T) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "ovsdb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	db, socket := filepath.Join(dir, "conf.db"), filepath.Join(dir, "sock")
	if out, err := exec.Command("ovsdb-tool", "create", db, realSchema).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cmd := exec.Command("ovsdb-server", db, "--remote=punix:"+socket, "--unixctl="+filepath.Join(dir, "ctl"), "-vconsole:off", "--no-chdir")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			return socket
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// TestSixtySwitches is a data centre's worth of them in one process.
func TestSixtySwitches(t *testing.T) {
	var ports []ovssim.Port
	for i := range 48 {
		ports = append(ports, ovssim.Port{Name: fmt.Sprint("p", i), Untagged: 100})
	}
	for range 60 {
		sim, err := ovssim.Start(ovssim.Config{Ports: ports})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(sim.Close)
		got := ask(t, "tcp", strings.TrimPrefix(sim.Endpoint(), "tcp:"), `{"op":"update","table":"Port","where":[],"row":{"tag":5}}`)
		if want := `{"Result":[{"count":49}],"Error":null}`; got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	}
}
