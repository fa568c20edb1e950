package ovs

import (
	"bytes"
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/fabric/driver"
)

// What a real server answers to the first and the second request of a change.
const (
	HonestRead = `{"id":1,"error":null,"result":[` +
		`{"rows":[{"name":"br0","ports":["set",[["uuid","00000000-0000-0000-0000-000000000001"],["uuid","00000000-0000-0000-0000-000000000002"]]]}]},` +
		`{"rows":[{"_uuid":["uuid","00000000-0000-0000-0000-000000000001"],"name":"p1","interfaces":["uuid","00000000-0000-0000-0000-00000000000a"],"vlan_mode":["set",[]],"tag":5,"trunks":["set",[]],"protected":false,"external_ids":["map",[["rerack-epoch","3"]]]},` +
		`{"_uuid":["uuid","00000000-0000-0000-0000-000000000002"],"name":"br0","interfaces":["uuid","00000000-0000-0000-0000-00000000000b"],"vlan_mode":["set",[]],"tag":["set",[]],"trunks":["set",[]],"protected":false,"external_ids":["map",[]]}]},` +
		`{"rows":[{"_uuid":["uuid","00000000-0000-0000-0000-00000000000a"],"link_state":"up"}]},` +
		`{"rows":[{"_uuid":["uuid","00000000-0000-0000-0000-0000000000ff"],"next_cfg":1,"cur_cfg":1}]}]}`
	honestWrite = `{"id":2,"error":null,"result":[{},{"count":1},{"count":1},{"count":1},{},{}]}`
	busyWrite   = `{"id":2,"error":null,"result":[{"error":"timed out","details":"no"},null,null,null,null,null]}`
)

// tape is a connection whose far end has said everything already.
type tape struct {
	net.Conn
	*bytes.Reader
}

func (tape) Write(p []byte) (int, error)  { return len(p), nil }
func (t tape) Read(p []byte) (int, error) { return t.Reader.Read(p) }

// FuzzAnswers lets the far end answer anything to the requests of a change: the driver must return, within
// its limits, and never claim to have set a port that it could not read back.
func FuzzAnswers(f *testing.F) {
	done := strings.Replace(strings.Replace(strings.Replace(strings.Replace(HonestRead, `"id":1`, `"id":3`, 1),
		`"3"`, `"4"`, 1), `"tag":5`, `"tag":6`, 1), `"vlan_mode":["set",[]]`, `"vlan_mode":"access"`, 1)
	f.Add([]byte(HonestRead + honestWrite + done))
	f.Add([]byte(HonestRead + busyWrite + strings.Replace(HonestRead, `"id":1`, `"id":3`, 1)))
	f.Add([]byte(HonestRead + `{"id":2,"result":null,"error":"down"}`))
	f.Add([]byte(`{"id":"echo","method":"echo","params":[]}` + HonestRead + honestWrite))
	f.Add([]byte(`{"id":1,"result":[{"rows":[{}]},{"rows":[{}]},{},{}]}`))
	for _, tag := range []string{`["set",[4094]]`, `-1`, `1e99`, `""`, `{}`, `["set",[[1]]]`, `["map",[[1,2]]]`} {
		f.Add([]byte(strings.Replace(HonestRead, `5`, tag, 1)))
	}
	drv, err := New(Config{Endpoint: "tcp:127.0.0.1:1", Bridge: "br0", Settle: time.Nanosecond})
	if err != nil {
		f.Fatal(err)
	}
	set := driver.Setting{Port: "p1", Untagged: 6, Epoch: 4}
	v, err := wanted(set, DefaultQuarantineVLAN)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, answers []byte) {
		ses := newSession(tape{Reader: bytes.NewReader(answers)}, 1<<20, nil)
		res, err := drv.converge(context.Background(), ses, driver.Change{Owner: "fuzz", Settings: []driver.Setting{set}}, map[string]vlans{"p1": v})
		if err == nil && (len(res.After) != 1 || res.After[0].Untagged != 6 || res.After[0].Epoch != 4) {
			t.Fatalf("claims success with %+v", res)
		}
	})
}

func TestHonestAnswersConverge(t *testing.T) {
	done := strings.NewReplacer(`"id":1`, `"id":3`, `"3"`, `"4"`, `"tag":5`, `"tag":6`).Replace(HonestRead)
	drv, err := New(Config{Endpoint: "tcp:127.0.0.1:1", Bridge: "br0"})
	if err != nil {
		t.Fatal(err)
	}
	set := driver.Setting{Port: "p1", Untagged: 6, Epoch: 4}
	v, err := wanted(set, DefaultQuarantineVLAN)
	if err != nil {
		t.Fatal(err)
	}
	ses := newSession(tape{Reader: bytes.NewReader([]byte(HonestRead + honestWrite + done))}, 1<<20, nil)
	res, err := drv.converge(t.Context(), ses, driver.Change{Settings: []driver.Setting{set}}, map[string]vlans{"p1": v})
	if err != nil || len(res.Changed) != 1 {
		t.Fatalf("%+v, %v: the seeds of the fuzz target are no conversation", res, err)
	}
}
