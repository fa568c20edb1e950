package bmcsim

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"rerack.dev/rerack/bmc/driver"
)

// redfishSession is one entry of the session table.
type redfishSession struct {
	id   string
	used time.Time
	conn net.Conn // of AMT: the connection it lives on
}

// sessionTimeout is SessionService.SessionTimeout.
const sessionTimeout = 30 * time.Minute

// object is a JSON object.
type object map[string]any

// reply is what a handler answers.
type reply struct {
	status int
	body   any
	header http.Header
}

func fail(status int, msg string) reply {
	return reply{status: status, body: object{"error": object{"code": "Base.1.13.GeneralError", "message": msg,
		"@Message.ExtendedInfo": []object{{"MessageId": "Base.1.13.GeneralError", "Message": msg}}}}}
}

func serveRedfish(w http.ResponseWriter, r *http.Request) {
	sc, ok := r.Context().Value(bmcKey{}).(*simConn)
	if !ok {
		http.Error(w, "no BMC here", http.StatusInternalServerError)
		return
	}
	b := sc.b
	if !b.stall(r.Context()) {
		panic(http.ErrAbortHandler)
	}
	b.count(strings.ToLower(r.Method))
	f := b.Faults()
	switch {
	case f.Drop:
		panic(http.ErrAbortHandler)
	case b.take(func(f *Faults) *int { return &f.Refuse503 }):
		send(w, fail(http.StatusServiceUnavailable, "the service is temporarily unavailable"), 0)
		return
	case f.RedirectTo != "" && r.Method == http.MethodGet:
		http.Redirect(w, r, f.RedirectTo+r.URL.Path, http.StatusTemporaryRedirect)
		return
	}
	out := b.route(r, sc)
	if b.take(func(f *Faults) *int { return &f.ResetConn }) {
		if t, ok := sc.Conn.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // a reset, not an orderly end
		}
		panic(http.ErrAbortHandler)
	}
	send(w, out, f.Flood)
}

func send(w http.ResponseWriter, out reply, flood int64) {
	for k, v := range out.header {
		w.Header()[k] = v
	}
	w.Header().Set("OData-Version", "4.0")
	if out.body == nil {
		w.WriteHeader(out.status)
		return
	}
	contentType := "application/json"
	raw, err := json.Marshal(out.body)
	if d, ok := out.body.(document); ok {
		contentType, raw, err = d.contentType, []byte(d.text), nil
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(out.status)
	if _, err := w.Write(raw); err != nil {
		return
	}
	blanks := []byte(strings.Repeat(" ", 32<<10))
	for n := int64(len(raw)); n < flood; n += int64(len(blanks)) {
		if _, err := w.Write(blanks); err != nil {
			return
		}
	}
}

func (b *BMC) route(r *http.Request, conn net.Conn) reply {
	if b.cfg.Profile.AMT {
		return b.wsman(r, conn)
	}
	// Some clients double the first slash, and BMCs' servers do not mind.
	path := "/" + strings.Trim(r.URL.Path, "/")
	const sessions = "/redfish/v1/SessionService/Sessions"
	if b.cfg.Profile.VendorAPI && strings.HasPrefix(path, "/api/") {
		return b.vendorAPI(r, path)
	}
	switch {
	case path == "/redfish" && r.Method == http.MethodGet:
		return reply{status: 200, body: object{"v1": "/redfish/v1/"}}
	case path == "/redfish/v1" && r.Method == http.MethodGet:
		return reply{status: 200, body: b.rootResource()}
	case path == sessions && r.Method == http.MethodPost:
		return b.login(r)
	}
	if !b.authenticate(r.Header.Get("X-Auth-Token")) {
		return fail(http.StatusUnauthorized, "the session is not valid")
	}
	sys := b.cfg.Profile.systemPath()
	switch {
	case r.Method == http.MethodDelete && strings.HasPrefix(path, sessions+"/"):
		return b.logout(strings.TrimPrefix(path, sessions+"/"))
	case r.Method == http.MethodPost && path == sys+"/Actions/ComputerSystem.Reset":
		return b.reset(r)
	case r.Method == http.MethodPatch && path == sys:
		return b.patchSystem(r)
	case r.Method == http.MethodPatch && b.cfg.Profile.Settings != "" && path == sys+"/"+b.cfg.Profile.Settings:
		return b.patchBoot(r, true)
	case r.Method == http.MethodGet:
		return b.resource(path)
	}
	return fail(http.StatusMethodNotAllowed, "method not allowed")
}

func (b *BMC) login(r *http.Request) reply {
	b.count("login")
	var body struct{ UserName, Password string }
	if err := read(r, &body); err != nil {
		return fail(http.StatusBadRequest, err.Error())
	}
	t, id, refused := b.newSession(body.UserName, body.Password)
	if refused != nil {
		return *refused
	}
	path := "/redfish/v1/SessionService/Sessions/" + id
	return reply{status: http.StatusCreated, body: object{"@odata.id": path, "Id": id, "UserName": body.UserName},
		header: http.Header{"X-Auth-Token": {t}, "Location": {path}}}
}

// newSession checks a login and makes an entry in the session table, or tells why not.
func (b *BMC) newSession(user, password string) (tok, id string, refused *reply) {
	ok := false
	for _, u := range b.cfg.Users {
		ok = ok || (u.User == user && u.Password.Reveal() == password)
	}
	if !ok || b.Faults().AuthFail {
		r := fail(http.StatusUnauthorized, "user name or password is wrong")
		return "", "", &r
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	for t, s := range b.sessions {
		if now.Sub(s.used) > sessionTimeout {
			delete(b.sessions, t)
		}
	}
	if len(b.sessions) >= b.cfg.Profile.MaxSessions {
		r := fail(http.StatusServiceUnavailable, "the maximum number of sessions is in use")
		return "", "", &r
	}
	tok, id = token(), token()[:8]
	b.sessions[tok] = redfishSession{id: id, used: now}
	return tok, id, nil
}

func (b *BMC) authenticate(tok string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, ok := b.sessions[tok]
	if !ok || time.Since(s.used) > sessionTimeout {
		delete(b.sessions, tok)
		return false
	}
	s.used = time.Now()
	b.sessions[tok] = s
	return true
}

func (b *BMC) logout(id string) reply {
	b.count("logout")
	b.mu.Lock()
	defer b.mu.Unlock()
	for t, s := range b.sessions {
		if s.id == id {
			delete(b.sessions, t)
			return reply{status: http.StatusNoContent}
		}
	}
	return fail(http.StatusNotFound, "no such session")
}

func (b *BMC) reset(r *http.Request) reply {
	var body struct{ ResetType string }
	if err := read(r, &body); err != nil {
		return fail(http.StatusBadRequest, err.Error())
	}
	button, ok := map[string]Button{"On": PressOn, "ForceOff": PressOff, "GracefulShutdown": PressGraceful, "ForceRestart": PressReset, "PowerCycle": PressCycle}[body.ResetType]
	if !ok {
		return fail(http.StatusBadRequest, fmt.Sprintf("reset type %q is not supported", body.ResetType))
	}
	if b.cfg.Profile.ConflictOnSame {
		state := b.cfg.Backend.Power()
		if (button == PressOn && state == driver.PowerOn) || ((button == PressOff || button == PressGraceful) && state == driver.PowerOff) {
			return fail(http.StatusConflict, "the server is already in the requested power state")
		}
	}
	switch err := b.press(button); {
	case errors.Is(err, ErrRefused):
		return fail(http.StatusConflict, err.Error())
	case err != nil:
		return fail(http.StatusInternalServerError, err.Error())
	}
	return reply{status: http.StatusNoContent}
}

func (b *BMC) patchSystem(r *http.Request) reply {
	p := b.cfg.Profile
	if p.RequireIfMatch && r.Header.Get("If-Match") == "" {
		return fail(http.StatusPreconditionRequired, "If-Match is required")
	}
	raw, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	if err != nil {
		return fail(http.StatusBadRequest, err.Error())
	}
	var body struct {
		Boot               json.RawMessage
		PowerRestorePolicy *RestorePolicy
	}
	if err := json.Unmarshal(raw, &body); err != nil {
		return fail(http.StatusBadRequest, err.Error())
	}
	if body.PowerRestorePolicy != nil {
		if p.NoRestore {
			return fail(http.StatusBadRequest, "PowerRestorePolicy is unknown")
		}
		if err := b.setRestore(*body.PowerRestorePolicy); err != nil {
			return fail(http.StatusInternalServerError, err.Error())
		}
	}
	if body.Boot != nil {
		r.Body = io.NopCloser(strings.NewReader(string(raw)))
		return b.patchBoot(r, p.Settings == "")
	}
	return reply{status: http.StatusOK, body: b.systemResource()}
}

// patchBoot sets the override; effective is false for a PATCH of the system where settings are elsewhere:
// accepted, without effect.
func (b *BMC) patchBoot(r *http.Request, effective bool) reply {
	p := b.cfg.Profile
	if p.RequireIfMatch {
		switch m := r.Header.Get("If-Match"); {
		case m == "":
			return fail(http.StatusPreconditionRequired, "If-Match is required")
		case m != "*" && m != b.etag():
			return fail(http.StatusPreconditionFailed, "the resource has changed")
		}
	}
	var body struct {
		Boot struct {
			Enabled string  `json:"BootSourceOverrideEnabled"`
			Target  string  `json:"BootSourceOverrideTarget"`
			Mode    *string `json:"BootSourceOverrideMode"`
		}
	}
	if err := read(r, &body); err != nil {
		return fail(http.StatusBadRequest, err.Error())
	}
	if p.RejectMode && body.Boot.Mode != nil {
		return fail(http.StatusBadRequest, "BootSourceOverrideMode is read-only")
	}
	want := driver.BootOverride{Device: driver.BootDefault}
	if body.Boot.Enabled != "Disabled" {
		dev, ok := deviceOf(body.Boot.Target)
		if !ok {
			return fail(http.StatusBadRequest, fmt.Sprintf("boot target %q is not supported", body.Boot.Target))
		}
		want = driver.BootOverride{Device: dev, Once: body.Boot.Enabled == "Once", Mode: driver.FirmwareUEFI}
		if body.Boot.Mode != nil && *body.Boot.Mode == "Legacy" {
			want.Mode = driver.FirmwareBIOS
		}
		if p.RequireMode && body.Boot.Mode == nil {
			effective = false
		}
	}
	if effective {
		if err := b.setBoot(want); err != nil {
			return fail(http.StatusInternalServerError, err.Error())
		}
	}
	return reply{status: http.StatusOK, body: b.systemResource()}
}

func deviceOf(target string) (driver.BootDevice, bool) {
	d, ok := map[string]driver.BootDevice{"None": driver.BootDefault, "Pxe": driver.BootPXE, "UefiHttp": driver.BootHTTP, "Hdd": driver.BootDisk}[target]
	return d, ok
}

func targetOf(d driver.BootDevice) string {
	return map[driver.BootDevice]string{driver.BootPXE: "Pxe", driver.BootHTTP: "UefiHttp", driver.BootDisk: "Hdd"}[d]
}

func (b *BMC) etag() string {
	h := fnv.New64a()
	fmt.Fprintf(h, "%v %v", b.cfg.Backend.Boot(), b.cfg.Backend.PowerRestore())
	return fmt.Sprintf(`"%x"`, h.Sum64())
}

func read(r *http.Request, v any) error {
	raw, err := readAll(r)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(raw), v)
}

func readAll(r *http.Request) (string, error) {
	raw, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	return string(raw), err
}
