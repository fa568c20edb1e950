package bmcsim

import (
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// amtInstance is an instance of a class. A property's value is text or, where it begins with <, elements.
type amtInstance struct {
	class string
	keys  []amtSelector
	props [][2]string
}

func (i amtInstance) selected(by []amtSelector) bool {
	for _, s := range by {
		if key(i.keys, s.Name) != strings.TrimSpace(s.Value) {
			return false
		}
	}
	return true
}

// refers reports whether the property named role is a reference to the object.
func (i amtInstance) refers(role string, to amtRef) bool {
	object := amtInstance{class: strings.TrimPrefix(to.Class, cimSchema), keys: to.Selectors}
	return slices.Contains(i.props, [2]string{role, object.reference()})
}

func (i amtInstance) reference() string {
	var b strings.Builder
	b.WriteString("<a:Address>" + anonymousTo + "</a:Address><a:ReferenceParameters><w:ResourceURI>" + namespace(i.class) + "</w:ResourceURI><w:SelectorSet>")
	for _, k := range i.keys {
		b.WriteString(`<w:Selector Name="` + k.Name + `">` + escapeXML(k.Value) + "</w:Selector>")
	}
	b.WriteString("</w:SelectorSet></a:ReferenceParameters>")
	return b.String()
}

func (i amtInstance) xml() string {
	var b strings.Builder
	b.WriteString("<r:" + i.class + ` xmlns:r="` + namespace(i.class) + `">`)
	for _, p := range i.props {
		v := p[1]
		if !strings.HasPrefix(v, "<") {
			v = escapeXML(v)
		}
		b.WriteString("<r:" + p[0] + ">" + v + "</r:" + p[0] + ">")
	}
	b.WriteString("</r:" + i.class + ">")
	return b.String()
}

func instance(class string, keys ...string) amtInstance {
	i := amtInstance{class: class}
	for k := 0; k+1 < len(keys); k += 2 {
		i.keys = append(i.keys, amtSelector{keys[k], keys[k+1]})
		i.props = append(i.props, [2]string{keys[k], keys[k+1]})
	}
	return i
}

func (i amtInstance) with(name, value string) amtInstance {
	i.props = append(slices.Clone(i.props), [2]string{name, value})
	return i
}

// instances is the part of AMT's model that is there; nil is a class that is not.
func (b *BMC) instances(class string) []amtInstance {
	system := instance("CIM_ComputerSystem", "CreationClassName", "CIM_ComputerSystem", "Name", "ManagedSystem")
	config := instance("CIM_BootConfigSetting", "InstanceID", amtConfig)
	switch class {
	case "CIM_ComputerSystem":
		return []amtInstance{instance(class, "CreationClassName", class, "Name", "Intel(r) AMT"), system}
	case "CIM_AssociatedPowerManagementService":
		state, available := b.amtPower()
		i := instance(class)
		for _, a := range available {
			i = i.with("AvailableRequestedPowerStates", strconv.Itoa(a))
		}
		return []amtInstance{i.with("PowerState", strconv.Itoa(state)).with("UserOfService", system.reference())}
	case "CIM_ComputerSystemPackage":
		return []amtInstance{instance(class).with("Dependent", system.reference()).with("PlatformGUID", platformGUID(b.identity().UUID))}
	case "CIM_Chassis":
		inv := b.identity()
		return []amtInstance{instance(class, "CreationClassName", class, "Tag", class).with("Manufacturer", or(inv.Manufacturer, b.cfg.Profile.Manufacturer)).
			with("Model", or(inv.Model, b.cfg.Profile.Model)).with("SerialNumber", inv.Serial)}
	case "AMT_EthernetPortSettings":
		mac := "00-00-00-00-00-00"
		if nics := b.identity().NICs; len(nics) > 0 {
			mac = strings.ReplaceAll(nics[0].MAC.String(), ":", "-")
		}
		return []amtInstance{instance(class, "InstanceID", "Intel(r) AMT Ethernet Port Settings 0").with("LinkIsUp", "true").with("MACAddress", mac),
			instance(class, "InstanceID", "Intel(r) AMT Ethernet Port Settings 1").with("LinkIsUp", "false").with("MACAddress", "00-00-00-00-00-00")}
	case "CIM_BootConfigSetting":
		return []amtInstance{config.with("ElementName", "Intel(r) AMT: Boot Configuration")}
	case "CIM_BootSourceSetting":
		var out []amtInstance
		for _, s := range amtSources() {
			out = append(out, instance(class, "InstanceID", s).with("FailThroughSupported", "2"))
		}
		return out
	case "CIM_ElementSettingData":
		role, _, _ := b.amtBoot()
		next := map[int]string{amtNextSingleUse: "3", amtNotNext: "2"}[role]
		return []amtInstance{
			instance(class).with("IsCurrent", "1").with("IsNext", "1").with("ManagedElement", system.reference()).with("SettingData", instance("AMT_SystemPowerScheme", "SchemeGUID", "1").reference()),
			instance(class).with("IsDefault", "0").with("IsNext", next).with("ManagedElement", system.reference()).with("SettingData", config.reference())}
	case "CIM_OrderedComponent":
		if b.cfg.Profile.NoBootOrder {
			return nil
		}
		_, source, _ := b.amtBoot()
		var out []amtInstance
		for _, s := range amtSources() {
			n := "0"
			if s == source {
				n = "1"
			}
			out = append(out, instance(class).with("AssignedSequence", n).with("GroupComponent", config.reference()).with("PartComponent", instance("CIM_BootSourceSetting", "InstanceID", s).reference()))
		}
		return out
	case "AMT_BootSettingData":
		_, _, options := b.amtBoot()
		all := map[string]string{"BIOSLastStatus": "0", "BIOSPause": "false", "BIOSSetup": "false", "BootMediaIndex": "0", "BootguardStatus": "127", "ConfigurationDataReset": "false",
			"FirmwareVerbosity": "0", "IDERBootDevice": "0", "OptionsCleared": "true", "OwningEntity": "Intel(r) AMT", "PlatformErase": "false", "RSEPassword": "", "ReflashBIOS": "false",
			"SecureBootControlEnabled": "true", "SecureErase": "false", "UEFIHTTPSBootEnabled": "true", "UEFILocalPBABootEnabled": "true", "UseIDER": "false", "UseSOL": "false",
			"UseSafeMode": "false", "WinREBootEnabled": "true"}
		maps.Copy(all, options)
		i := instance(class, "InstanceID", "Intel(r) AMT:BootSettingData 0").with("ElementName", "Intel(r) AMT Boot Configuration Settings")
		for _, k := range slices.Sorted(maps.Keys(all)) {
			i = i.with(k, all[k])
		}
		return []amtInstance{i}
	}
	return nil
}

// platformGUID writes a UUID as its bytes stand in SMBIOS: the first three fields are little-endian.
func platformGUID(uuid string) string {
	raw, err := hex.DecodeString(strings.ReplaceAll(uuid, "-", ""))
	if err != nil || len(raw) != 16 {
		return strings.Repeat("0", 32)
	}
	slices.Reverse(raw[0:4])
	slices.Reverse(raw[4:6])
	slices.Reverse(raw[6:8])
	return strings.ToUpper(hex.EncodeToString(raw))
}
