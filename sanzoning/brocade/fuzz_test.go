package brocade

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/driver"
)

// tape answers the nth request with the nth of the parts, and then no more.
type tape struct {
	parts  [][]byte
	status int
}

func (p *tape) RoundTrip(r *http.Request) (*http.Response, error) {
	if len(p.parts) == 0 {
		return nil, errors.New("hung up")
	}
	body := p.parts[0]
	p.parts = p.parts[1:]
	status := http.StatusOK
	if r.Method == http.MethodGet {
		status = p.status
	}
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), Request: r}, nil
}

func playing(status int, answers []byte) *session {
	cfg := Config{URL: "https://switch.example", BusyWait: time.Nanosecond, MaxBytes: 64 << 10}.withDefaults()
	return &session{cfg: cfg, user: "rerack", http: &http.Client{Transport: &tape{bytes.Split(answers, []byte("\x00")), status}}}
}

// What an honest switch answers to the requests of a change of one zone.
const (
	freeLock  = `<Response><fabric-lock><lock-principal-domain-id>0</lock-principal-domain-id></fabric-lock></Response>`
	before    = `<Response><effective-configuration><cfg-name>prod</cfg-name><checksum>0123456789abcdef0123456789abcdef</checksum></effective-configuration></Response>`
	stored    = `<Response><defined-configuration><cfg><cfg-name>prod</cfg-name><member-zone><zone-name>x</zone-name></member-zone></cfg></defined-configuration></Response>`
	afterward = `<Response><effective-configuration><cfg-name>prod</cfg-name><checksum>0123456789abcdef0123456789abcdee</checksum><enabled-zone><zone-name>rr_a_e4</zone-name>` +
		`<zone-type-string>user-created-peer-zone</zone-type-string><member-entry><entry-name>10:00:00:00:00:00:00:0A</entry-name>` +
		`<principal-entry-name>50:00:00:00:00:00:00:01</principal-entry-name></member-entry></enabled-zone></effective-configuration></Response>`
)

var honest = strings.Join([]string{freeLock, before, stored, "", "", "", afterward}, "\x00")

var wantedZone = driver.Zone{Name: "a", Initiators: []string{"10:00:00:00:00:00:00:0a"}, Targets: []string{"50:00:00:00:00:00:00:01"}, Epoch: 4}

func TestHonestAnswersConverge(t *testing.T) {
	res, err := playing(200, []byte(honest)).apply(t.Context(), driver.ZoneChange{Zones: []driver.Zone{wantedZone}})
	if err != nil || len(res.Changed) != 1 {
		t.Fatalf("%+v, %v: the seeds of the fuzz target are no conversation", res, err)
	}
}

func TestHostileAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		answer string
		want   fault.Kind
	}{
		"garbage":        {200, "\x01\x02", fault.Internal},
		"half":           {200, freeLock[:30], fault.Internal},
		"another thing":  {200, `<html>log in</html>`, fault.Internal},
		"empty":          {200, "", fault.Internal},
		"no lock":        {200, `<Response/>`, fault.Internal},
		"lock of text":   {200, strings.Replace(freeLock, ">0<", ">free<", 1), fault.Internal},
		"endless":        {200, freeLock + strings.Repeat(" ", 1<<20), fault.Internal},
		"deep":           {200, strings.Repeat("<Response>", 20_000), fault.Internal},
		"entities":       {200, `<!DOCTYPE x [<!ENTITY a "aaaa">]><Response>&a;</Response>`, fault.Internal},
		"no checksum":    {200, freeLock + "\x00" + `<Response><effective-configuration/></Response>`, fault.Internal},
		"short checksum": {200, freeLock + "\x00" + strings.Replace(before, "0123", "", 1), fault.Internal},
		"old release":    {404, `<errors/>`, fault.Unsupported},
		"old error":      {400, `<errors xmlns="urn:x"><error><error-message>` + strings.Repeat("x", 9999) + `</error-message></error></errors>`, fault.Invalid},
		"its failure":    {500, ``, fault.Internal},
		"redirect":       {302, ``, fault.Internal},
		"session gone":   {401, ``, fault.Unauthorized},
	} {
		_, err := playing(c.status, []byte(c.answer)).apply(t.Context(), driver.ZoneChange{Zones: []driver.Zone{wantedZone}})
		if !fault.Is(err, c.want) {
			t.Errorf("%s: %v, want kind %s", name, err, c.want)
		}
		if err != nil && len(err.Error()) > 1000 {
			t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
		}
	}
}

// FuzzAnswers lets the switch answer anything to the requests of a change: the driver must return, within
// its limits, and never claim to have set a zone that it could not read back.
func FuzzAnswers(f *testing.F) {
	f.Add(200, []byte(honest))
	f.Add(200, []byte(strings.Join([]string{freeLock, afterward, stored}, "\x00")))
	f.Add(404, []byte(""))
	f.Add(503, []byte(`<errors><error><error-message>busy</error-message></error></errors>`))
	f.Add(200, []byte(strings.Replace(freeLock, ">0<", "><", 1)))
	f.Add(200, []byte(`<Response><fabric-lock><lock-principal-domain-id>1</lock-principal-domain-id><timeout>1800</timeout><client-user-name>rerack</client-user-name></fabric-lock></Response>`))
	f.Add(200, []byte(strings.Join([]string{freeLock, strings.Replace(before, "prod", "", 1), stored}, "\x00")))
	f.Fuzz(func(t *testing.T, status int, answers []byte) {
		if status < 100 || status > 999 {
			return
		}
		res, err := playing(status, answers).apply(context.Background(), driver.ZoneChange{Zones: []driver.Zone{wantedZone}})
		if err == nil && (len(res.After) != 1 || res.After[0].Epoch != 4 || len(res.After[0].Initiators) != 1 || res.After[0].Initiators[0] != wantedZone.Initiators[0]) {
			t.Fatalf("claims success with %+v", res)
		}
	})
}
