package redfish

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	schema "github.com/stmcginnis/gofish/redfish"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
)

// Boot reads the pending override: from the settings object where the system has one with a Boot (iDRAC
// 10 /Settings, AMI /SD), because there the system itself shows what the last boot used.
func (d *Driver) Boot(ctx context.Context) (driver.BootOverride, error) {
	d.c.requests = 0
	s, _, err := d.read(ctx)
	if err != nil {
		return driver.BootOverride{}, err
	}
	b := s.Boot
	if link := s.Settings.SettingsObject.ID; link != "" {
		var pending struct{ Boot boot }
		_, err := d.c.get(ctx, link, &pending)
		switch {
		case err == nil && pending.Boot.Enabled != "":
			b = pending.Boot
		case err != nil && !fault.Is(err, fault.NotFound):
			return driver.BootOverride{}, err
		}
	}
	return readBoot(b)
}

func readBoot(b boot) (driver.BootOverride, error) {
	if b.Enabled == "" && b.Target == "" {
		return driver.BootOverride{}, fault.New(fault.Unsupported, "the BMC tells no boot override")
	}
	if b.Enabled == schema.DisabledBootSourceOverrideEnabled || b.Target == schema.NoneBootSourceOverrideTarget || b.Target == "" {
		return driver.BootOverride{Device: driver.BootDefault}, nil
	}
	out := driver.BootOverride{Once: b.Enabled == schema.OnceBootSourceOverrideEnabled}
	switch b.Mode {
	case schema.UEFIBootSourceOverrideMode:
		out.Mode = driver.FirmwareUEFI
	case schema.LegacyBootSourceOverrideMode:
		out.Mode = driver.FirmwareBIOS
	}
	switch b.Target {
	case schema.PxeBootSourceOverrideTarget:
		out.Device = driver.BootPXE
	case schema.UefiHTTPBootSourceOverrideTarget:
		out.Device = driver.BootHTTP
	case schema.HddBootSourceOverrideTarget:
		out.Device = driver.BootDisk
	default:
		// Somebody set a CD or a USB stick: not ours to name, and not equal to anything we ask for.
		out.Device = driver.BootDevice(b.Target)
	}
	return out, nil
}

// SetBoot patches the override, in the settings object where the system announces one.
func (d *Driver) SetBoot(ctx context.Context, want driver.BootOverride) error {
	d.c.requests = 0
	s, etag, err := d.read(ctx)
	if err != nil {
		return err
	}
	patch, err := d.bootPatch(want, s.Boot)
	if err != nil {
		return err
	}
	link := d.system
	if settings := s.Settings.SettingsObject.ID; settings != "" {
		var pending struct{ Boot *boot }
		e, err := d.c.get(ctx, settings, &pending)
		switch {
		case err == nil:
			link, etag = settings, e
		case !fault.Is(err, fault.NotFound):
			return err
		}
	}
	return d.patch(ctx, link, etag, map[string]any{"Boot": patch})
}

func (d *Driver) bootPatch(want driver.BootOverride, now boot) (bootPatch, error) {
	if want.Device == driver.BootDefault {
		return bootPatch{Enabled: schema.DisabledBootSourceOverrideEnabled, Target: schema.NoneBootSourceOverrideTarget}, nil
	}
	p := bootPatch{Enabled: schema.ContinuousBootSourceOverrideEnabled}
	if want.Once {
		p.Enabled = schema.OnceBootSourceOverrideEnabled
	}
	switch want.Device {
	case driver.BootPXE:
		p.Target = schema.PxeBootSourceOverrideTarget
	case driver.BootHTTP:
		p.Target = schema.UefiHTTPBootSourceOverrideTarget
	case driver.BootDisk:
		p.Target = schema.HddBootSourceOverrideTarget
	default:
		return p, fault.Newf(fault.Invalid, "boot device %q", want.Device)
	}
	if len(now.Targets) > 0 && !slices.Contains(now.Targets, p.Target) {
		return p, &fault.Error{Kind: fault.Unsupported, What: "boot from " + string(p.Target), Evidence: fmt.Sprintf("the BMC offers %v", now.Targets)}
	}
	switch want.Mode {
	case driver.FirmwareUEFI:
		p.Mode = schema.UEFIBootSourceOverrideMode
	case driver.FirmwareBIOS:
		p.Mode = schema.LegacyBootSourceOverrideMode
	case driver.FirmwareAny:
		if d.quirks.sendMode {
			if p.Mode = now.Mode; p.Mode == "" {
				p.Mode = schema.UEFIBootSourceOverrideMode
			}
		}
	}
	if d.quirks.omitMode {
		p.Mode = ""
	}
	return p, nil
}

func (d *Driver) patch(ctx context.Context, link, etag string, body any) error {
	var h http.Header
	if d.quirks.ifMatch {
		if etag == "" {
			etag = "*"
		}
		h = http.Header{"If-Match": {etag}}
	}
	a, err := d.c.do(ctx, http.MethodPatch, link, body, h)
	if err != nil {
		return err
	}
	if a.status < 200 || a.status >= 300 {
		return statusFault(http.MethodPatch, link, a)
	}
	return nil
}

// SetPowerRestore sets ComputerSystem.PowerRestorePolicy (schema 1.6 on) and reads it back.
func (d *Driver) SetPowerRestore(ctx context.Context, stayOff bool) error {
	d.c.requests = 0
	want := "LastState"
	if stayOff {
		want = "AlwaysOff"
	}
	s, etag, err := d.read(ctx)
	if err != nil {
		return err
	}
	if s.PowerRestorePolicy == nil {
		return fault.New(fault.Unsupported, "the BMC has no power restore policy")
	}
	if *s.PowerRestorePolicy == want {
		return nil
	}
	if err := d.patch(ctx, d.system, etag, map[string]string{"PowerRestorePolicy": want}); err != nil {
		return err
	}
	s, _, err = d.read(ctx)
	if err != nil {
		return err
	}
	if s.PowerRestorePolicy == nil || *s.PowerRestorePolicy != want {
		return &fault.Error{Kind: fault.Unverified, What: "power restore policy", Evidence: "the BMC accepted " + want + " and shows another"}
	}
	return nil
}

// Identity reads UUID, serial, manufacturer and model from the system resource.
func (d *Driver) Identity(ctx context.Context) (driver.Inventory, error) {
	d.c.requests = 0
	s, _, err := d.read(ctx)
	if err != nil {
		return driver.Inventory{}, err
	}
	return d.identity(s), nil
}
