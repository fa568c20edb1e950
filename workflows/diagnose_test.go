package workflows

import (
	"strings"
	"testing"
	"time"

	bmc "rerack.dev/rerack/bmc/driver"
	fabric "rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/orchestrator/state"
)

func after(milestones ...string) map[string]time.Time {
	out := map[string]time.Time{}
	for _, m := range milestones {
		out[m] = time.Unix(1, 0)
	}
	return out
}

// Whatever keeps a target from coming up, the reason begins with what was waited for, says the cause, and ends
// with what to do.
func TestDiagnosis(t *testing.T) {
	t.Parallel()
	on := &bmc.Reading{State: bmc.PowerOn}
	port := func(now fabric.Port) []portSymptom {
		return []portSymptom{{Switch: "tor-b", Port: "p1", Untagged: 20, Now: now}}
	}
	well := port(fabric.Port{Untagged: 20, Link: fabric.LinkUp})
	volume := volumeSymptom{Volume: "db", Array: "arr", Target: "iqn:db", From: "10.9.0.1", Portal: "10.0.0.1:3260"}
	with := func(change func(*volumeSymptom)) []volumeSymptom {
		v := volume
		change(&v)
		return []volumeSymptom{v}
	}
	for name, c := range map[string]struct {
		s     symptoms
		says  []string
		never string
	}{
		"hangs in its firmware": {s: symptoms{Power: on, Ports: well, Times: after("power-on")},
			says: []string{"no boot server was ever asked", "(next: look at its console"}},
		"went off":   {s: symptoms{Power: &bmc.Reading{State: bmc.PowerOff}, Ports: well}, says: []string{"its BMC reads off", "event log"}},
		"BMC silent": {s: symptoms{BMC: "no route", Ports: well}, says: []string{"its BMC does not answer: no route"}},
		"no cable":   {s: symptoms{Power: on, Ports: port(fabric.Port{Untagged: 20, Link: fabric.LinkDown})}, says: []string{"tor-b port p1 has no carrier"}},
		"link went down after its boot": {s: symptoms{Power: on, Times: after("dhcp"), Ports: port(fabric.Port{Untagged: 20, Link: fabric.LinkDown})},
			says: []string{"never fetched its boot script"}, never: "carrier"},
		"port shut":  {s: symptoms{Power: on, Ports: port(fabric.Port{Untagged: 20, Shut: true})}, says: []string{"tor-b port p1 is shut"}},
		"wrong VLAN": {s: symptoms{Power: on, Ports: port(fabric.Port{Untagged: 30})}, says: []string{"tor-b port p1 is in VLAN 30 and was set to 20"}},
		"trunk":      {s: symptoms{Power: on, Ports: port(fabric.Port{Untagged: 1, AllVLANs: true})}, says: []string{"no boot server"}, never: "VLAN"},
		"off link": {s: symptoms{Power: on, Ports: well, Notes: []state.Note{{Topic: "link", Text: "it came from elsewhere", Count: 4}}},
			says: []string{"it came from elsewhere (at least 4 times)", "(next: compare the cable"}, never: "no boot server"},
		"twin before all": {s: symptoms{Notes: []state.Note{{Topic: "link", Text: "link"}, {Topic: "twin", Text: "two machines"}}},
			says: []string{"two machines; link", "(next: find the other machine"}},
		"address only":       {s: symptoms{Times: after("dhcp", "bootfile")}, says: []string{"took its address and never fetched its boot script"}},
		"script and no more": {s: symptoms{Times: after("dhcp", "script")}, says: []string{"fetched its boot script and never its kernel"}},
		"script again": {s: symptoms{Times: after("dhcp", "script"), Notes: []state.Note{{Topic: "script", Text: "it fetched its boot script", Count: 8}}},
			says: []string{"fetched its boot script at least 8 times and never its kernel in whole"}},
		"kernel and no more": {s: symptoms{Times: after("dhcp", "script", "kernel")}, says: []string{"its kernel in whole, and nothing was heard of it after that"}},
		"CHAP": {s: symptoms{SAN: true, Times: after("script"), Volumes: with(func(v *volumeSymptom) { v.CHAP = "san/db" })},
			says: []string{"array arr has no session of 10.9.0.1 to db, whose mask admits it", "the secret san/db is not the one", "410d613c"}},
		"no way to the portal": {s: symptoms{SAN: true, Times: after("script"), Volumes: with(func(*volumeSymptom) {})},
			says: []string{"it cannot reach portal 10.0.0.1:3260"}, never: "or the secret"},
		"too early for the volume": {s: symptoms{Times: after("script"), Volumes: with(func(*volumeSymptom) {})}, says: []string{"never its kernel"}, never: "session"},
		"masked": {s: symptoms{SAN: true, Times: after("script"), Volumes: with(func(v *volumeSymptom) { v.Masked = true })},
			says: []string{"the mask of db on array arr does not admit 10.9.0.1"}},
		"volume gone": {s: symptoms{Times: after("phone-home"), Volumes: with(func(v *volumeSymptom) { v.Missing = true })},
			says: []string{"array arr has no volume iqn:db (db)"}},
		"VM": {s: symptoms{VM: true}, says: []string{"the VM's console"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := diagnosis("no phone-home within 1m0s; last seen: power-on", c.s)
			if !strings.HasPrefix(got, "no phone-home within 1m0s; last seen: power-on. ") {
				t.Errorf("it does not begin with what was waited for: %s", got)
			}
			for _, want := range c.says {
				if !strings.Contains(got, want) {
					t.Errorf("it does not say %q: %s", want, got)
				}
			}
			if c.never != "" && strings.Contains(got, c.never) {
				t.Errorf("it says %q: %s", c.never, got)
			}
		})
	}
	if got := diagnosis("no healthy", symptoms{Times: after("phone-home")}); got != "no healthy" {
		t.Errorf("nothing was found, and it says %q", got)
	}
	long := symptoms{Notes: []state.Note{{Topic: "link", Text: strings.Repeat("x", 4*maxReason)}}}
	if n := len(diagnosis("why", long)); n > maxReason {
		t.Errorf("a reason of %d bytes", n)
	}
}
