package amt

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
)

// Classes and instances of AMT's boot control ("Boot Control", "Boot Configuration Details"). There is
// one boot configuration. It holds constant boot sources, of which at most one is set; beside it stand
// the boot options of AMT_BootSettingData; all apply to the next boot while the configuration's role is
// "next single use", and are cleared by that boot.
const (
	classBootConfig  = "CIM_BootConfigSetting"
	classBootSource  = "CIM_BootSourceSetting"
	classBootService = "CIM_BootService"
	classBootOptions = "AMT_BootSettingData"
	classRole        = "CIM_ElementSettingData"
	classOrder       = "CIM_OrderedComponent"

	bootConfig = "Intel(r) AMT: Boot Configuration 0"
	sourcePXE  = "Intel(r) AMT: Force PXE Boot"
	sourceDisk = "Intel(r) AMT: Force Hard-drive Boot"

	roleNextSingleUse = 1
	roleNotNext       = 32768 // since AMT 7

	isNextSingleUse = 3 // CIM_ElementSettingData.IsNext
)

// Boot reads what the next boot will do, as "Get the Boot Configuration for the next Boot" and "Get Boot
// Details for a Boot Configuration Setting Instance" do. Mode is always empty: AMT boots in the mode
// that the firmware is set to, and does not tell it. Options that somebody else left for the next boot
// (BIOS setup, redirection, an erase) make a device of that name, equal to nothing that is asked for.
//
// A firmware that does not show the boot order is Unsupported: its override could not be read back.
func (d *Driver) Boot(ctx context.Context) (driver.BootOverride, error) {
	d.c.requests = 0
	next, err := d.isNext(ctx)
	if err != nil || !next {
		return driver.BootOverride{Device: driver.BootDefault}, err
	}
	options, err := d.options(ctx)
	if err != nil {
		return driver.BootOverride{}, err
	}
	if left := pending(options); left != "" {
		return driver.BootOverride{Device: driver.BootDevice("amt " + left), Once: true}, nil
	}
	source, err := d.source(ctx)
	if err != nil {
		return driver.BootOverride{}, err
	}
	switch source {
	case "":
		return driver.BootOverride{Device: driver.BootDefault}, nil
	case sourcePXE:
		return driver.BootOverride{Device: driver.BootPXE, Once: true}, nil
	case sourceDisk:
		return driver.BootOverride{Device: driver.BootDisk, Once: true}, nil
	}
	return driver.BootOverride{Device: driver.BootDevice("amt " + clip(source)), Once: true}, nil
}

// isNext reports whether the boot configuration applies to the next boot.
func (d *Driver) isNext(ctx context.Context) (bool, error) {
	items, err := d.c.instances(ctx, classRole, associations(classRole, "ManagedElement", classSystem, systemKeys()...))
	if err != nil {
		return false, unshown(err)
	}
	for _, i := range items {
		if _, ok := i.child("SettingData").refers(classBootConfig); !ok {
			continue // of the power scheme, of network ports
		}
		v, ok := i.number("IsNext")
		return ok && v == isNextSingleUse, nil
	}
	// "If no instances were found, then there is no configuration for next boot".
	return false, nil
}

// source returns the InstanceID of the boot source that is first in order; 0 means not used.
func (d *Driver) source(ctx context.Context) (string, error) {
	items, err := d.c.instances(ctx, classOrder, associations(classOrder, "GroupComponent", classBootConfig, selector{"InstanceID", bootConfig}))
	if err != nil {
		return "", unshown(err)
	}
	first, found := uint16(0), ""
	for _, i := range items {
		keys, ok := i.child("PartComponent").refers(classBootSource)
		n, numbered := i.number("AssignedSequence")
		if ok && numbered && n > 0 && (found == "" || n < first) {
			first, found = n, keys["InstanceID"]
		}
	}
	return found, nil
}

func unshown(err error) error {
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Unsupported) {
		return &fault.Error{Kind: fault.Unsupported, What: "read boot override", Evidence: "this AMT does not show its boot order", Err: err,
			Next: "set network boot first permanently in the firmware, and let the boot server decide"}
	}
	return err
}

func (d *Driver) options(ctx context.Context) (*node, error) {
	return d.c.call(ctx, get(classBootOptions), classBootOptions)
}

// pending names the first option that makes the next boot another one than asked for, or "".
func pending(options *node) string {
	for _, name := range []string{"BIOSPause", "BIOSSetup", "BootMediaIndex", "ConfigurationDataReset", "PlatformErase", "ReflashBIOS",
		"SecureErase", "UseIDER", "UseSOL", "UseSafeMode"} {
		if p := options.child(name); p != nil && p.text != zeroed(p) {
			return name
		}
	}
	return ""
}

// zeroed is the value of an option that is off: false, or 0. Names stay what they are.
func zeroed(p *node) string {
	if strings.EqualFold(p.text, "true") {
		return "false"
	}
	if _, err := parseUint16(p.text); err == nil {
		return "0"
	}
	return p.text
}

// SetBoot implements driver.BMC: PXE and disk, once. The mode is the firmware's own and is not set.
//
// The steps are those of "Set SOL/Storage Redirection and other Boot Options" and "Set or Disable Boot
// Configuration Settings for the Next Boot". The old source goes first, because some firmware refuses
// any other change while it stands.
func (d *Driver) SetBoot(ctx context.Context, b driver.BootOverride) error {
	d.c.requests = 0
	source := ""
	switch b.Device {
	case driver.BootDefault:
	case driver.BootPXE:
		source = sourcePXE
	case driver.BootDisk:
		source = sourceDisk
	case driver.BootHTTP:
		return &fault.Error{Kind: fault.Unsupported, What: "boot from HTTP", Evidence: "AMT's HTTPS boot is for its own recovery, with parameters of its own"}
	default:
		return fault.Newf(fault.Invalid, "boot device %q", b.Device)
	}
	if source != "" && !b.Once {
		return &fault.Error{Kind: fault.Unsupported, What: "boot override for good", Evidence: "AMT's apply to one boot", Next: "set the order in the firmware"}
	}
	if err := d.order(ctx, ""); err != nil {
		return err
	}
	if err := d.clearOptions(ctx); err != nil {
		return err
	}
	role := roleNotNext
	if source != "" {
		role = roleNextSingleUse
	}
	v, err := d.c.invoke(ctx, invoke(classBootService, "SetBootConfigRole",
		reference("BootConfigSetting", classBootConfig, selector{"InstanceID", bootConfig})+fmt.Sprintf("<r:Role>%d</r:Role>", role)))
	if err != nil {
		return err
	}
	// Firmware before AMT 7 knows no "not next". A configuration without a source does the same.
	if v != returnedOK && (source != "" || v != returnedNotSupported && v != returnedInvalid) {
		return returnFault("SetBootConfigRole", v)
	}
	if source == "" {
		return nil
	}
	return d.order(ctx, source)
}

// order makes source the boot source, or none.
func (d *Driver) order(ctx context.Context, source string) error {
	arg := ""
	if source != "" {
		arg = reference("Source", classBootSource, selector{"InstanceID", source})
	}
	v, err := d.c.invoke(ctx, invoke(classBootConfig, "ChangeBootOrder", arg))
	if err != nil {
		return err
	}
	return returnFault("ChangeBootOrder", v)
}

// readOnly are the properties of AMT_BootSettingData that say something of the machine, or can only be
// written for a recovery. A Put that holds one of the former violates the schema.
func readOnly(name string) bool {
	return slices.Contains([]string{"BIOSLastStatus", "BootguardStatus", "OptionsCleared", "RPEEnabled", "RSEPassword", "SecureBootControlEnabled",
		"UEFIHTTPSBootEnabled", "UEFILocalPBABootEnabled", "UefiBootParametersArray", "WinREBootEnabled"}, name)
}

// clearOptions puts all options off when one is pending. Properties keep the order they were read in,
// which is the schema's.
func (d *Driver) clearOptions(ctx context.Context) error {
	options, err := d.options(ctx)
	if err != nil || pending(options) == "" {
		return err
	}
	var b strings.Builder
	b.WriteString("<r:" + classBootOptions + ">")
	for _, p := range options.children {
		if p.space != uri(classBootOptions) || readOnly(p.name) {
			continue
		}
		b.WriteString("<r:" + p.name + ">" + escape(zeroed(p)) + "</r:" + p.name + ">")
	}
	b.WriteString("</r:" + classBootOptions + ">")
	_, err = d.c.call(ctx, put(classBootOptions, b.String()), classBootOptions)
	return err
}
