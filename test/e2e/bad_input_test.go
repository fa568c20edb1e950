package e2e

import (
	"encoding/hex"
	"encoding/json"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/api"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/bootclient"
	"rerack.dev/rerack/pxe/httpboot"
	"rerack.dev/rerack/test/lab"
	"rerack.dev/rerack/test/qemu/qemutest"
)

// wrong is one thing that is not as it should be when mail1 is placed. b01 fits it best, then b02, c01 and c02.
type wrong struct {
	edit   []string          // of the story's files
	more   map[string]string // files beside them
	before func(*evening)    // with mail1 released
	during func(*evening)    // while it is placed
	after  func(*evening)    // when that has ended
	on     string            // where it runs in the end; "" is nowhere
	report []string          // what the printed report says
	tried  []string          // machines that were tried in vain
	still  bool              // no machine was turned on
}

func wrongs() map[string]wrong {
	return map[string]wrong{
		"wrong checksum": {
			before: func(e *evening) { e.damage("linux-x86", flip) },
			report: []string{"image: image linux-x86 cannot be booted: image sha256:", "content is sha256:", "import it again"}, still: true,
		},
		"truncated image": {
			before: func(e *evening) { e.damage("linux-x86", func(b []byte) []byte { return b[:len(b)/2] }) },
			report: []string{"image: image linux-x86 cannot be booted: image sha256:", "content is sha256:", "import it again"}, still: true,
		},
		"image damaged while its machine starts": {
			before: func(e *evening) { e.fault("machine", "b01", "slow", "3s") },
			during: func(e *evening) { e.untilOn("b01"); e.damage("linux-x86", flip) },
			report: []string{"b01: the kernel is not served (unverified): image sha256:", "content is sha256:"}, tried: []string{"b01"},
			// Another machine would not have booted it either: b01 is as good as before.
			after: func(e *evening) {
				if m := e.run("get", "machine", "b01"); strings.Contains(m, "suspect") || strings.Contains(m, "fence") {
					e.t.Errorf("b01 is blamed for the image:\n%s", m)
				}
			},
		},
		"missing LUN": {
			before: func(e *evening) { e.redeclare(replace("example:mail1", "example:mail1-gone")) },
			report: []string{"array iscsi1 has no volume iqn.2026-01.org.example:mail1-gone, which mail1 is declared to be", "compare its declaration with the array"},
			tried:  []string{"b01"}, still: true,
		},
		"CHAP mismatch": {
			edit: []string{"target: iqn.2026-01.org.example:mail1", "target: iqn.2026-01.org.example:mail1\n  chap: san/mail1",
				"    - {volume: mail1}\n  image: linux-x86", "    - {volume: mail1, boot: true}\n  image: own-disk", "rounds: 4", "rounds: 2", "healthDeadline: 30s", "healthDeadline: 12s"},
			more:   map[string]string{"own-disk.yaml": "apiVersion: rerack/v1\nkind: Image\nmetadata: {name: own-disk}\nspec: {type: san, arch: x86_64}\n"},
			before: func(e *evening) { e.secret("san/mail1", "not-the-secret-1") },
			report: []string{"array iscsi1 has no session of 127.9.2.1 to mail1, whose mask admits it", "the secret san/mail1 is not the one that the array asks for (CHAP)"},
			tried:  []string{"b01", "b02"},
		},
		"cables swapped": { // so that the port which is set to the workload's VLAN is another machine's
			before: func(e *evening) { e.redeclare(swap("b01", "b02", "port")) },
			on:     "c01", tried: []string{"b01", "b02"},
			report: []string{"port tor-b/p1 came from network of 10.1.100.1, where its address 10.1.20.13/24 is not", "compare the cable, the port and its VLAN with the topology"},
		},
		"BMC addresses swapped": {
			before: func(e *evening) { e.redeclare(swap("b01", "b02", "address")) },
			on:     "c01", report: []string{"b01: ", "b02: ", "verify certificate: fingerprint is ", "find out who answers at this address"},
		},
		"BMCs swapped": { // with their certificates: only the machines behind them are not the declared ones
			before: func(e *evening) {
				both := func(s string) string { return swap("b01", "b02", "fingerprint")(swap("b01", "b02", "address")(s)) }
				e.redeclare(both)
			},
			on: "c01", tried: []string{"b01", "b02"}, report: []string{"verify identity: the BMC's machine has UUID b9374408-25a6-4a39-8bf8-62521126545e, expected is d268621c-edd6-4574-8803-7bfa5f899f9b",
				"check which BMC has this address"},
		},
		"a stranger has the MAC and comes second": {
			during: func(e *evening) {
				e.untilHealthy()
				if got := e.stranger("b01", [16]byte{0xde, 0xad}); got.End != bootclient.EndLocal {
					e.t.Errorf("a stranger with b01's MAC was given %s to boot", got.End)
				}
			},
			on: "b01",
		},
		"a stranger has the MAC and comes first": {
			before: func(e *evening) { e.fault("machine", "b01", "slow", "3s") },
			during: func(e *evening) {
				e.untilOn("b01")
				if got := e.stranger("b01", [16]byte{0xde, 0xad}); got.End != bootclient.EndKernel {
					e.t.Errorf("the first with b01's MAC was given %s to boot: %s", got.End, got.Reason)
				}
			},
			on: "b02", tried: []string{"b01"},
			report: []string{"two machines have the Ethernet address 52:54:00:02:00:01: the machine with UUID dead0000-0000-0000-0000-000000000000 at port tor-b/p99 asked first and is served",
				"find the other machine by its port", "Alarms:"},
		},
		"token replayed": {
			before: func(e *evening) { e.fault("machine", "b01", "slow", "3s") },
			during: func(e *evening) {
				e.untilOn("b01")
				heard := e.stranger("b01", uuidOf(e, "b01")) // who listens on the wire knows what b01 does
				e.untilHealthy()
				err := bootclient.Report(e.t.Context(), httpClient(), heard.PhoneHome, httpboot.Report{Nonce: bootclient.NewNonce()})
				if !fault.Is(err, fault.Conflict) {
					e.t.Errorf("the second phone-home with one token is answered with %v", err)
				}
			},
			on: "b01", report: []string{"Alarms:", "mail1 on b01: phone-home with another nonce: the token was replayed or stolen (from 127.0.0.1)"},
		},
	}
}

// Bad input, of every sort that reaches a boot: the report names the true cause, the workload goes to the next
// machine where another one helps, and nothing half-done is left.
func TestBadInput(t *testing.T) {
	for name, tt := range wrongs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := watched(t, edited(t, tt.more, append([]string{"bootDeadline: 60s", "bootDeadline: 12s"}, tt.edit...)...))
			if err := e.world.Attest(t.Context(), "a05"); err != nil { // mail1 is not repurposable: a person gives it up
				t.Fatal(err)
			}
			e.run("workload", "release", "mail1", "--wait")
			if tt.before != nil {
				tt.before(e)
			}
			on := e.acts()
			e.run("workload", "place", "mail1")
			if tt.during != nil {
				tt.during(e)
			}
			v := e.placed()
			if tt.after != nil {
				tt.after(e)
			}
			report := e.run("recovery", "show", v.ID)
			for _, want := range tt.report {
				if !strings.Contains(report, want) {
					t.Errorf("the report does not say %q", want)
				}
			}
			res := v.Results[0]
			if healthy := res.State == "healthy"; healthy != (tt.on != "") || healthy && res.Where.Machine != tt.on {
				t.Errorf("mail1 is %s on %q, want %q: %s", res.State, res.Where.Machine, tt.on, res.Reason)
			}
			for _, m := range tt.tried {
				if !slices.ContainsFunc(res.Tried, func(s string) bool { return strings.HasPrefix(s, m+": ") }) && (res.Where.Machine != m || res.Reason == "") {
					t.Errorf("the report does not say that %s was tried in vain: %q", m, res.Tried)
				}
			}
			if now := e.acts(); tt.still && !maps.Equal(pressed(on), pressed(now)) {
				t.Errorf("machines were turned on: %v became %v", pressed(on), pressed(now))
			}
			e.checkOffBut(tt.on, "b01", "b02", "c01", "c02")
			e.checkInvariants()
			t.Logf("\n%s", report)
		})
	}
}

// One volume that is declared and not there costs its own workload its return, and nobody else's: the others on its
// array are fenced and masked all the same.
func TestMissingLUNInAFire(t *testing.T) {
	t.Parallel()
	e := watched(t)
	e.redeclare(replace("example:mail1", "example:mail1-gone"))
	e.run("lab", "burn", "rack-a")
	v, code := e.wait("rack-a")
	if code != 3 || v.Report.Recovered != 19 {
		t.Errorf("the run ends %s (%d), %d recovered: %s", v.State, code, v.Report.Recovered, v.Reason)
	}
	for _, r := range v.Results {
		if r.Name == "mail1" && (r.State != "left-out" || !strings.Contains(r.Reason, "array iscsi1 has no volume iqn.2026-01.org.example:mail1-gone")) {
			t.Errorf("mail1 is %s: %s", r.State, r.Reason)
		}
	}
	e.checkNamed(v)
	e.checkInvariants()
}

// A real machine boots from a real array, and the secret that it is given is not the array's. The console says so in
// iPXE's numbers, the report in words.
func TestWrongSecretOfARealArray(t *testing.T) {
	qemutest.QEMU(t)
	root := filepath.Dir(filepath.Dir(qemutest.Sources(t).Kernel))
	e := labUp(t, "--qemu", "--qemu-kernel", root, "--qemu-loaders", qemutest.Loaders(t), "--example", "real-story")
	t.Cleanup(func() { e.keepConsoles("a01", "b01", "b02") })
	e.untilSeen()
	if err := e.world.Attest(t.Context(), "a01"); err != nil {
		t.Fatal(err)
	}
	e.run("workload", "release", "db1", "--wait")
	e.redeclare(func(s string) string {
		return regexp.MustCompile(`rounds: \d+`).ReplaceAllString(regexp.MustCompile(`bootDeadline: \S+`).ReplaceAllString(s, "bootDeadline: 60s"), "rounds: 1")
	})
	e.secret("san/db1", "not-the-secret-1")
	_, _, code := e.try("workload", "place", "db1", "--wait")
	v := e.placed()
	if code == 0 || v.Results[0].State != "left-out" {
		t.Errorf("place ends with %d, db1 is %s", code, v.Results[0].State)
	}
	where := v.Results[0].Where.Machine
	reason := v.Results[0].Reason
	for _, want := range []string{"no phone-home within 1m0s; last seen: script. array san1 has no session of ", " to db1-root, whose mask admits it", "secret san/db1 is not the one"} {
		if !strings.Contains(reason, want) {
			t.Errorf("the report does not say %q", want)
		}
	}
	t.Log(reason)
	if said := e.console(where); !strings.Contains(said, "410d613c") {
		t.Errorf("the console of %s says nothing of a wrong secret", where)
	}
	if e.isOn(where) {
		t.Errorf("%s is on", where)
	}
	e.checkInvariants()
}

func flip(b []byte) []byte { b[len(b)/2] ^= 1; return b }

func replace(from, to string) func(string) string {
	return func(s string) string { return strings.ReplaceAll(s, from, to) }
}

// swap exchanges the first value of a key in the declarations of two machines.
func swap(a, b, key string) func(string) string {
	value := func(s, machine string) (from, to int) {
		at := regexp.MustCompile(`(?s)kind: Machine\nmetadata:\n(?:  [^\n]*\n)*?  name: ` + machine + `\n.*?\n[ -]*` + key + `: ([^\n]+)\n`).FindStringSubmatchIndex(s)
		return at[2], at[3]
	}
	return func(s string) string {
		af, at := value(s, a)
		bf, bt := value(s, b)
		return s[:af] + s[bf:bt] + s[at:bf] + s[af:at] + s[bt:]
	}
}

// damage changes the kernel of an image on the disk of the server.
func (e *evening) damage(image string, how func([]byte) []byte) {
	e.t.Helper()
	t := e.declared()
	path := filepath.Join(e.dir, "images", "sha256", strings.TrimPrefix(string(t.Images[image].Spec.Kernel), "sha256:"))
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, how(b), 0o600)
	}
	if err != nil {
		e.t.Fatal(err)
	}
}

// declared is the lab's topology as it truly is.
func (e *evening) declared() *topology.Topology {
	e.t.Helper()
	t, err := topology.LoadFS(os.DirFS(e.dir), "topology")
	if err != nil {
		e.t.Fatal(err)
	}
	return t
}

// redeclare applies the lab's topology with something in it that is not so.
func (e *evening) redeclare(how func(string) string) {
	e.t.Helper()
	b, err := os.ReadFile(filepath.Join(e.dir, "topology", "lab.yaml"))
	if err != nil {
		e.t.Fatal(err)
	}
	changed := how(string(b))
	if changed == string(b) {
		e.t.Fatal("nothing is declared differently")
	}
	path := filepath.Join(e.t.TempDir(), "wrong.yaml")
	if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
		e.t.Fatal(err)
	}
	e.run("apply", path)
}

func (e *evening) fault(kind, name, what, arg string) {
	e.t.Helper()
	if err := e.world.Fault(e.t.Context(), kind, name, what, arg); err != nil {
		e.t.Fatal(err)
	}
}

// secret changes a password that the server knows, and no device.
func (e *evening) secret(name, password string) {
	e.t.Helper()
	path := filepath.Join(e.dir, "secrets.json")
	all := map[string]lab.Credential{}
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	c, known := all[name]
	if err != nil || !known {
		e.t.Fatalf("no secret %s: %v", name, err)
	}
	c.Password = password
	all[name] = c
	if b, err = json.Marshal(all); err == nil {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		e.t.Fatal(err)
	}
}

// placed waits until the newest run has ended.
func (e *evening) placed() (v api.RunView) {
	e.t.Helper()
	e.until(2*time.Minute, "the placement has ended", func() bool {
		var ok bool
		v, ok = e.now()
		return ok && v.State.Ended()
	})
	return v
}

func (e *evening) untilHealthy() {
	e.t.Helper()
	e.until(time.Minute, "mail1 is healthy", func() bool {
		v, ok := e.now()
		return ok && len(v.Results) > 0 && v.Results[0].State == "healthy"
	})
}

// untilOn waits until a machine is on.
func (e *evening) untilOn(machine string) {
	e.t.Helper()
	e.until(time.Minute, machine+" is on", func() bool { return e.isOn(machine) })
}

func (e *evening) isOn(machine string) bool {
	e.t.Helper()
	s, err := e.world.Status(e.t.Context())
	if err != nil {
		e.t.Fatal(err)
	}
	return slices.ContainsFunc(s.Machines, func(m lab.MachineStatus) bool { return m.Name == machine && m.On })
}

// checkOffBut fails the test when a machine is on that was tried and given up.
func (e *evening) checkOffBut(but string, machines ...string) {
	e.t.Helper()
	for _, m := range machines {
		if on := e.isOn(m); on != (m == but) {
			e.t.Errorf("%s is on: %v", m, on)
		}
	}
}

// pressed are the power buttons among acts.
func pressed(acts map[string]int) map[string]int {
	out := map[string]int{}
	for act, n := range acts {
		if strings.HasSuffix(act, " press-on") || strings.HasSuffix(act, " press-off") {
			out[act] = n
		}
	}
	return out
}

// stranger boots a machine of nobody's that has the Ethernet address of one of the lab's, at another port of the
// same network.
func (e *evening) stranger(machine string, uuid [16]byte) bootclient.Outcome {
	e.t.Helper()
	mac, err := pxe.ParseMAC(string(e.declared().Machines[machine].Spec.NICs[0].MAC))
	if err != nil {
		e.t.Fatal(err)
	}
	at := slices.Index(e.server, "--dhcp-relay-listen")
	relay := lab.RelayPrefix.Addr().As4()
	relay[2], relay[3] = 250, 1
	out, err := bootclient.Run(e.t.Context(), bootclient.Config{MAC: mac, UUID: uuid, Arch: pxe.ArchEFIX64, IPXE: true,
		DHCPServer: netip.MustParseAddrPort(e.server[at+1]), Relay: netip.AddrFrom4(relay),
		LinkSelection: netip.MustParseAddr("10.1.20.1"), CircuitID: "tor-b/p99", DHCPTimeout: 200 * time.Millisecond, DHCPTries: 2})
	if err != nil {
		e.t.Fatal(err)
	}
	return out
}

func uuidOf(e *evening, machine string) (u [16]byte) {
	e.t.Helper()
	raw, err := hex.DecodeString(strings.ReplaceAll(e.declared().Machines[machine].Spec.UUID, "-", ""))
	if err != nil || copy(u[:], raw) != len(u) {
		e.t.Fatalf("UUID of %s: %v", machine, err)
	}
	return u
}

func httpClient() *http.Client {
	return &http.Client{Timeout: 10 * time.Second}
}
