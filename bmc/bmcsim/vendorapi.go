package bmcsim

import (
	"net/http"
	"net/url"
	"strings"

	"rerack.dev/rerack/bmc/driver"
)

// vendorAPI is the HTTPS API of ASRock Rack's BMCs beside Redfish, as far as power goes: a login gives a
// cookie and a CSRF token, and both are asked for. Bodies follow the fixtures of bmclib's provider.
func (b *BMC) vendorAPI(r *http.Request, path string) reply {
	if path == "/api/session" && r.Method == http.MethodPost {
		b.count("login")
		raw, err := readAll(r)
		if err != nil {
			return fail(http.StatusBadRequest, err.Error())
		}
		form, err := url.ParseQuery(raw)
		if err != nil {
			return fail(http.StatusBadRequest, err.Error())
		}
		tok, id, refused := b.newSession(form.Get("username"), form.Get("password"))
		if refused != nil {
			return *refused
		}
		cookie := http.Cookie{Name: "QSESSIONID", Value: tok, Path: "/", Secure: true, HttpOnly: true}
		return reply{status: http.StatusOK, body: object{"ok": 0, "privilege": 4, "racsession_id": 10, "CSRFToken": id}, header: http.Header{"Set-Cookie": {cookie.String()}}}
	}
	cookie, err := r.Cookie("QSESSIONID")
	if err != nil || !b.authenticate(cookie.Value) || r.Header.Get("X-CSRFTOKEN") != b.sessionID(cookie.Value) {
		return fail(http.StatusUnauthorized, "the session is not valid")
	}
	switch r.Method + " " + path {
	case "DELETE /api/session":
		return reply{status: http.StatusOK, body: b.logout(b.sessionID(cookie.Value)).body}
	case "GET /api/chassis-status":
		on := 0
		if b.power() != driver.PowerOff { // power good, like IPMI
			on = 1
		}
		return reply{status: http.StatusOK, body: object{"power_status": on, "led_status": 0}}
	case "GET /api/fru":
		inv := b.identity()
		man, model := or(inv.Manufacturer, b.cfg.Profile.Manufacturer), or(inv.Model, b.cfg.Profile.Model)
		return reply{status: http.StatusOK, body: []object{{"device": object{"id": 0, "name": "BMC_FRU"},
			"board":   object{"manufacturer": man, "product_name": model, "serial_number": inv.Serial},
			"product": object{"manufacturer": man, "product_name": model, "serial_number": inv.Serial}}}}
	case "GET /api/asrr/fw-info":
		return reply{status: http.StatusOK, body: object{"BMC_fw_version": "0.03.00", "BIOS_fw_version": "L2.07B", "CPLD_version": "N/A"}}
	case "GET /api/asrr/inventory_info", "GET /api/sensors":
		return reply{status: http.StatusOK, body: []object{}}
	case "POST /api/actions/power":
		var body struct {
			Command int `json:"power_command"`
		}
		if err := read(r, &body); err != nil {
			return fail(http.StatusBadRequest, err.Error())
		}
		button, ok := map[int]Button{0: PressOff, 1: PressOn, 2: PressCycle, 3: PressReset, 5: PressGraceful}[body.Command]
		if !ok {
			return fail(http.StatusBadRequest, "no such power command")
		}
		if err := b.press(button); err != nil {
			return fail(http.StatusConflict, err.Error())
		}
		return reply{status: http.StatusOK, body: object{"power_command": body.Command}}
	}
	return fail(http.StatusNotFound, "no resource "+strings.TrimPrefix(path, "/api"))
}

func (b *BMC) sessionID(tok string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sessions[tok].id
}
